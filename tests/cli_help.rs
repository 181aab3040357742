//! A stranger can work from `--help`: every command has one, with an example, and serve's shows every setting.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use oncelog::{cli, config::SETTINGS};
use std::process::Command;

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

#[test]
fn the_command_line_is_consistent() {
    cli::command().debug_assert();
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &["stats", "--url", "https://x"],
    ] {
        let output = oncelog().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}
