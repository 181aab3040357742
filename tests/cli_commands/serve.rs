//! `serve` says why it does not start.

use crate::support::{Server, folder, run, text};

#[test]
fn a_port_that_is_taken_is_named_with_what_to_do() {
    let folders = [folder(), folder()];
    let server = Server::start(folders[0].path());
    let port = server.port();
    let output = run(folders[1].path(), &["--port", port]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        format!(
            "error: port {port} on 127.0.0.1 is taken; stop the other program or choose another with --port or PORT\n"
        )
    );
}

#[test]
fn with_json_logs_the_reason_is_a_json_line() {
    let folders = [folder(), folder()];
    let server = Server::start(folders[0].path());
    let output = run(
        folders[1].path(),
        &["--log-format", "json", "--port", server.port()],
    );
    assert_eq!(output.status.code(), Some(1));
    let line: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(line["message"].as_str().unwrap().contains("is taken"));
}

#[test]
fn sigterm_ends_it_with_0() {
    let folder = folder();
    assert_eq!(Server::start(folder.path()).stop(), Some(0));
}
