//! The description of the API, and the pages.
use crate::http::testing::Fixture;
use axum::{
    body::Body,
    http::{Request, header},
};

#[tokio::test]
async fn a_browser_gets_a_page_and_any_other_client_json() {
    let fixture = Fixture::new();
    let json = fixture.get("/").await;
    assert_eq!(json.json()["service"], "oncelog");
    assert_eq!(json.json()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json.json()["status"], "healthy");
    let endpoints = json.json()["endpoints"].to_string();
    assert!(
        endpoints.contains("\"POST /publish\"") && endpoints.contains("\"GET /docs\""),
        "{endpoints}"
    );
    let browser = Request::get("/")
        .header(header::ACCEPT, "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
        .body(Body::empty())
        .expect("valid");
    let page = fixture.send(browser).await;
    assert_eq!(page.header(header::CONTENT_TYPE), "text/html; charset=utf-8");
    assert!(page.text.contains(env!("CARGO_PKG_VERSION")));
}
