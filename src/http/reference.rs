//! The reference page at `/redoc`, rendered from the OpenAPI document: plain HTML, no script, nothing from elsewhere.
//!
//! Only `documents` calls it, once at start. What the document lacks is left out; nothing in it can break the page,
//! since every text is escaped.

use super::error::Kind;
use serde_json::Value;
use std::fmt::Write;

/// All calls of the document, as `METHOD /path`.
pub(super) fn calls(document: &Value) -> Vec<String> {
    operations(document)
        .map(|(path, method, _)| format!("{} {path}", method.to_uppercase()))
        .collect()
}

/// The page.
pub(super) fn render(document: &Value) -> String {
    let mut body = String::new();
    contents(&mut body, document);
    for tag in items(&document["tags"]) {
        let name = text(&tag["name"]);
        let _ = write!(
            body,
            "<h2>{}</h2>{}",
            escape(name),
            prose(text(&tag["description"]))
        );
        for (path, method, operation) in operations(document) {
            if items(&operation["tags"]).any(|tag| tag == name) {
                call(&mut body, path, method, operation);
            }
        }
    }
    body.push_str("<h2 id=\"schemas\">Schemas</h2>");
    for (name, schema) in fields(&document["components"]["schemas"]) {
        schema_section(&mut body, name, schema);
    }
    problems(&mut body);
    let info = &document["info"];
    include_str!("reference.html")
        .replace("{{title}}", &escape(text(&info["title"])))
        .replace("{{version}}", &escape(text(&info["version"])))
        .replace("{{description}}", &inline(text(&info["description"])))
        .replace("{{body}}", &body)
}

fn contents(body: &mut String, document: &Value) {
    body.push_str("<nav><ul>");
    for (path, method, operation) in operations(document) {
        let _ = write!(
            body,
            "<li><a href=\"#{}\"><code>{} {}</code></a> {}</li>",
            anchor(method, path),
            method.to_uppercase(),
            escape(path),
            escape(text(&operation["summary"]))
        );
    }
    body.push_str(
        "<li><a href=\"#schemas\">Schemas</a></li><li><a href=\"#problems\">Problems</a></li></ul></nav>",
    );
}

fn call(body: &mut String, path: &str, method: &str, operation: &Value) {
    let _ = write!(
        body,
        "<h3 id=\"{}\"><code>{} {}</code> {}</h3>{}",
        anchor(method, path),
        method.to_uppercase(),
        escape(path),
        escape(text(&operation["summary"])),
        prose(text(&operation["description"]))
    );
    if items(&operation["parameters"]).next().is_some() {
        body.push_str("<table><tr><th>Parameter</th><th>In</th><th>Type</th><th>Meaning</th></tr>");
        for parameter in items(&operation["parameters"]) {
            let needed = if parameter["required"] == true {
                ""
            } else {
                " <small>optional</small>"
            };
            let _ = write!(
                body,
                "<tr><td><code>{}</code>{needed}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(text(&parameter["name"])),
                escape(text(&parameter["in"])),
                type_of(&parameter["schema"]),
                prose(text(&parameter["description"]))
            );
        }
        body.push_str("</table>");
    }
    let request = &operation["requestBody"];
    if request.is_object() {
        let _ = write!(
            body,
            "<p><strong>Body</strong>: {}. {}</p>",
            content(&request["content"]),
            inline(text(&request["description"]))
        );
        examples(body, &request["content"]);
    }
    body.push_str("<table><tr><th>Status</th><th>Body</th><th>Meaning</th></tr>");
    for (status, response) in fields(&operation["responses"]) {
        let _ = write!(
            body,
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(status),
            content(&response["content"]),
            prose(text(&response["description"]))
        );
    }
    body.push_str("</table>");
}

/// Content types, each with its schema.
fn content(content: &Value) -> String {
    let kinds: Vec<String> = fields(content)
        .map(|(kind, media)| format!("<code>{}</code> {}", escape(kind), type_of(&media["schema"])))
        .collect();
    kinds.join(" or ")
}

fn examples(body: &mut String, content: &Value) {
    for (_, media) in fields(content) {
        if !media["example"].is_null() {
            example(body, &media["example"]);
        }
    }
}

fn example(body: &mut String, example: &Value) {
    let shown = match example {
        Value::String(text) => text.clone(),
        // A value that was read as JSON is written as JSON.
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    };
    let _ = write!(body, "<pre>{}</pre>", escape(&shown));
}

fn schema_section(body: &mut String, name: &str, schema: &Value) {
    let _ = write!(
        body,
        "<h3 id=\"schema-{0}\"><code>{0}</code></h3>{1}",
        escape(name),
        prose(text(&schema["description"]))
    );
    let needed: Vec<&Value> = items(&schema["required"]).collect();
    if schema["properties"].is_object() {
        body.push_str("<table><tr><th>Field</th><th>Type</th><th>Meaning</th></tr>");
        for (field, schema) in fields(&schema["properties"]) {
            let optional = if needed.iter().any(|needed| **needed == field) {
                ""
            } else {
                " <small>optional</small>"
            };
            let _ = write!(
                body,
                "<tr><td><code>{}</code>{optional}</td><td>{}</td><td>{}</td></tr>",
                escape(field),
                type_of(schema),
                prose(text(&schema["description"]))
            );
        }
        body.push_str("</table>");
    } else {
        let _ = write!(body, "<p>{}</p>", type_of(schema));
    }
    if !schema["example"].is_null() {
        example(body, &schema["example"]);
    }
}

fn problems(body: &mut String) {
    body.push_str(
        "<h2 id=\"problems\">Problems</h2><p>Every error answers as <code>application/problem+json</code> \
         (RFC 9457). Its <code>type</code> is one of these and never changes for a kind of problem.</p>\
         <table><tr><th>Type</th><th>Status</th><th>Title</th><th>Meaning</th></tr>",
    );
    for kind in Kind::ALL {
        let _ = write!(
            body,
            "<tr id=\"{0}\"><td><code>/problems/{0}</code></td><td>{1}</td><td>{2}</td><td>{3}</td></tr>",
            kind.name(),
            kind.status().as_u16(),
            escape(kind.title()),
            inline(kind.meaning())
        );
    }
    body.push_str("</table>");
}

/// A schema in a few words, with a link when it has a name.
fn type_of(schema: &Value) -> String {
    if let Some(name) = text(&schema["$ref"])
        .rsplit('/')
        .next()
        .filter(|name| !name.is_empty())
    {
        return format!("<a href=\"#schema-{0}\">{0}</a>", escape(name));
    }
    for choice in ["oneOf", "anyOf"] {
        let choices: Vec<String> = items(&schema[choice]).map(type_of).collect();
        if !choices.is_empty() {
            return choices.join(" or ");
        }
    }
    let values: Vec<String> = items(&schema["enum"])
        .map(|value| format!("<code>{}</code>", escape(text(value))))
        .collect();
    if !values.is_empty() {
        return values.join(" or ");
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        kinds => items(kinds).map(text).collect(),
    };
    let mut shown = escape(&kinds.join(" or "));
    if schema["items"].is_object() {
        let _ = write!(shown, " of {}", type_of(&schema["items"]));
    }
    for (bound, word) in [
        ("minLength", "from"),
        ("maxLength", "to"),
        ("minItems", "at least"),
    ] {
        if let Some(number) = schema[bound].as_u64() {
            let _ = write!(shown, " <small>{word} {number}</small>");
        }
    }
    shown
}

/// Paragraphs, with `code`.
fn prose(markdown: &str) -> String {
    markdown
        .split("\n\n")
        .filter(|paragraph| !paragraph.is_empty())
        .map(|paragraph| format!("<p>{}</p>", inline(paragraph)))
        .collect()
}

/// Escaped text in which `…` between backticks is code.
fn inline(markdown: &str) -> String {
    let escaped = escape(markdown);
    let mut shown = String::with_capacity(escaped.len());
    for (number, part) in escaped.split('`').enumerate() {
        if number % 2 == 1 {
            let _ = write!(shown, "<code>{part}</code>");
        } else {
            shown.push_str(part);
        }
    }
    shown
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn anchor(method: &str, path: &str) -> String {
    let words: Vec<&str> = path
        .split(|char: char| !char.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    format!("{method}-{}", words.join("-"))
}

/// Every operation of the document: path, method, and what it says.
fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    fields(&document["paths"])
        .flat_map(|(path, item)| fields(item).map(move |(method, operation)| (path, method, operation)))
}

fn fields(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value))
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_of_the_document_cannot_become_markup() {
        let page = render(&json!({
            "info": {"title": "<b>", "version": "1", "description": "a `<i>` & b"},
            "tags": [{"name": "x"}],
            "paths": {"/<u>": {"get": {"tags": ["x"], "summary": "<s>"}}},
        }));
        assert!(page.contains("a <code>&lt;i&gt;</code> &amp; b"), "{page}");
        for tag in ["<b>", "<i>", "<u>", "<s>"] {
            assert!(!page.contains(tag), "{tag}");
        }
    }

    #[test]
    fn types_are_told_in_words() {
        assert_eq!(type_of(&json!({"type": ["string", "null"]})), "string or null");
        assert_eq!(
            type_of(&json!({"type": "array", "items": {"$ref": "#/components/schemas/Event"}})),
            "array of <a href=\"#schema-Event\">Event</a>"
        );
        assert_eq!(
            type_of(&json!({"enum": ["a", "b"]})),
            "<code>a</code> or <code>b</code>"
        );
    }
}
