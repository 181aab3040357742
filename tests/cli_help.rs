//! A stranger can work from `--help`: every command has one, with an example, and serve's shows every setting.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use oncelog::{cli, config::SETTINGS};
use std::{fs, process::Command};
use tempfile::TempDir;

/// The program without any setting of the caller's environment.
fn oncelog() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncelog"));
    command.env_clear();
    command
}

fn help(arguments: &[&str]) -> String {
    let output = oncelog().args(arguments).arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_has_help_with_an_example() {
    let top = cli::command();
    let names: Vec<&str> = top.get_subcommands().map(clap::Command::get_name).collect();
    assert!(names.contains(&"serve"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let text = help(&[name]);
        let example = format!("oncelog {name}");
        let (_, examples) = text
            .split_once("Examples:\n")
            .unwrap_or_else(|| panic!("{name}: no examples in\n{text}"));
        assert!(examples.contains(&example), "{name}: {examples}");
    }
    assert!(help(&[]).contains("Examples:\n"));
}

#[test]
fn the_help_of_serve_shows_each_setting_with_its_flag_variable_and_default() {
    for text in [help(&["serve"]), help(&[])] {
        for setting in SETTINGS {
            assert!(text.contains(&format!("--{}", setting.flag)), "{}", setting.flag);
            assert!(
                text.contains(&format!("[env: {}]", setting.name)),
                "{}",
                setting.name
            );
            let default = setting.default.map(|value| format!("[default: {value}]"));
            assert!(
                default.is_none_or(|default| text.contains(&default)),
                "{}",
                setting.name
            );
        }
    }
}

/// What `man` prints of a page.
fn formatted(page: &str) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("page.1");
    fs::write(&path, page).unwrap();
    let output = Command::new("groff")
        .args(["-man", "-Tascii", "-ww", "-P-cbou", "-rLL=200n"])
        .arg(path)
        .output()
        .unwrap_or_else(|error| panic!("groff (Debian: groff-base): {error}"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_has_a_manual_page_that_says_what_its_help_says() {
    let folder = TempDir::new().unwrap();
    let pages = folder.path().join("share/man1");
    let output = oncelog().args(["man", "--folder"]).arg(&pages).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let top = cli::command();
    let names: Vec<&str> = top.get_subcommands().map(clap::Command::get_name).collect();
    for name in names.iter().filter(|name| **name != "help") {
        let page = fs::read_to_string(pages.join(format!("oncelog-{name}.1"))).unwrap();
        let printed = oncelog().args(["man", name]).output().unwrap();
        assert_eq!(String::from_utf8(printed.stdout).unwrap(), page, "{name}");
        let text = formatted(&page);
        let about = top
            .find_subcommand(name)
            .unwrap()
            .get_about()
            .unwrap()
            .to_string();
        let example = format!("oncelog {name}");
        let (said, examples) = text.split_once("EXAMPLES\n").unwrap();
        assert!(said.contains(&about), "{name}: {text}");
        assert!(examples.contains(&example), "{name}: {text}");
        assert!(said.contains("--help"), "{name}: {text}");
    }
    let text = formatted(&fs::read_to_string(pages.join("oncelog.1")).unwrap());
    for name in names.iter().filter(|name| **name != "help") {
        assert!(text.contains(&format!("oncelog-{name}(1)")), "{name}: {text}");
    }
}

#[test]
fn a_page_that_cannot_be_made_is_named() {
    let unknown = oncelog().args(["man", "pubish"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    let message = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        message.contains("\"pubish\"") && message.contains("publish"),
        "{message}"
    );

    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let output = oncelog().args(["man", "--folder"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&*file.to_string_lossy()));
}

#[test]
fn the_version_says_that_it_is_no_release() {
    let output = oncelog().arg("--version").output().unwrap();
    let version = concat!("oncelog ", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{version} (development build)\n")
    );
}

#[test]
fn the_command_line_is_consistent() {
    cli::command().debug_assert();
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &["stats", "--url", "ftp://x"],
    ] {
        let output = oncelog().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}
