//! Content codings by their headers: which one a body has (RFC 9110, section 8.4).

use super::error::{Kind, Problem};
use crate::compression::BodyCoding;
use axum::http::{HeaderMap, header};

/// The codings that a request's body may have, as a client is told.
pub(super) const TAKEN: &str = "gzip, zstd, identity";

/// The coding of a request's body; `None` when it comes as it is.
pub(super) fn of_body(headers: &HeaderMap) -> Result<Option<BodyCoding>, Problem> {
    let mut named = members(headers, header::CONTENT_ENCODING);
    let Some(name) = named.next() else {
        return Ok(None);
    };
    if named.next().is_some() {
        return Err(Problem::new(
            Kind::UnsupportedCoding,
            format!("Content-Encoding: one of {TAKEN} is taken, not several of them"),
        ));
    }
    match name.to_ascii_lowercase().as_str() {
        "identity" => Ok(None),
        "gzip" | "x-gzip" => Ok(Some(BodyCoding::Gzip)),
        "zstd" => Ok(Some(BodyCoding::Zstd)),
        _ => Err(Problem::new(
            Kind::UnsupportedCoding,
            format!("Content-Encoding: one of {TAKEN} is taken, not {name:?}"),
        )),
    }
}

/// The members of a header that is a list. One that is no text names nothing that is known.
fn members(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(str::trim)
        .filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;

    fn headers(name: &header::HeaderName, values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (name.clone(), value.parse().expect("a header's value")))
            .collect()
    }

    #[test]
    fn a_body_has_one_known_coding_or_none() {
        let of = |values: &[&str]| of_body(&headers(&header::CONTENT_ENCODING, values));
        for (values, coding) in [
            (&[][..], None),
            (&[""], None),
            (&["identity"], None),
            (&["gzip"], Some(BodyCoding::Gzip)),
            (&["X-GZip"], Some(BodyCoding::Gzip)),
            (&[" zstd ,"], Some(BodyCoding::Zstd)),
        ] {
            assert_eq!(of(values).ok(), Some(coding), "{values:?}");
        }
        for values in [
            &["br"][..],
            &["deflate"],
            &["gzip, gzip"],
            &["gzip", "zstd"],
            &["\u{e9}"],
        ] {
            let problem = of(values).expect_err("it is refused").into_response();
            assert_eq!(problem.status(), 415, "{values:?}");
            assert_eq!(problem.headers()[header::ACCEPT_ENCODING], TAKEN);
        }
    }
}
