//! The daemon's command line: what it says and how it exits when it cannot start.

use std::process::Output;

fn icecluster(args: &[&str]) -> Output {
    let mut command = ice_testing::command(env!("CARGO_BIN_EXE_icecluster"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ICECLUSTER_")) {
        command.env_remove(name);
    }
    ice_testing::output(command.args(args))
}

fn refused(args: &[&str], code: i32) -> String {
    let out = icecluster(args);
    let error = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

#[test]
fn version_and_help_go_to_standard_output() {
    for args in [&["version"][..], &["--version"], &["-version"]] {
        let out = icecluster(args);
        assert!(out.status.success());
        assert!(String::from_utf8(out.stdout).unwrap().trim_end().ends_with(env!("CARGO_PKG_VERSION")));
    }
    assert!(icecluster(&["-help"]).status.success());
}

#[test]
fn without_a_file_at_the_default_path_it_says_what_to_do() {
    if std::path::Path::new(ice_host::config::DEFAULT_PATH).exists() {
        // This machine runs a real node: nothing to see here.
        return;
    }
    let error = refused(&[], 2);
    assert!(error.contains("there is no such file") && error.contains("icecluster dev"), "{error}");
}

#[test]
fn an_empty_name_means_the_defaults_and_the_environment() {
    for args in [&["-config", ""][..], &["-config="], &["--config", ""]] {
        let dir = ice_testing::tempdir();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("backing"), "").unwrap();
        let mut command = ice_testing::command(env!("CARGO_BIN_EXE_icecluster"));
        command.args(args).env("ICECLUSTER_DATA", at("data")).env("ICECLUSTER_BACKING", at("backing"));
        let out = ice_testing::output(command.env("ICECLUSTER_MOUNT", "").env("ICECLUSTER_BIND", "127.0.0.1:0"));
        let error = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {error}");
        assert!(
            error.starts_with("icecluster: cannot start: cannot create backing ") && error.contains("Not a directory"),
            "{error}"
        );
    }
}

#[test]
fn a_bad_configuration_is_one_line_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.yml");
    let path = file.to_str().unwrap();
    assert_eq!(refused(&["-config", path], 2).lines().count(), 1);
    for (text, word) in [
        ("bakcing: /x\n", "backing"),
        ("keepalive: 5\n", "keepalive"),
        ("a: [\n", "c.yml"),
        ("hooks_dir: /x\n", "hooks"),
    ] {
        std::fs::write(&file, text).unwrap();
        let error = refused(&["--config", path], 2);
        assert!(error.lines().count() == 1 && error.contains(word), "{text:?}: {error}");
    }
}

#[test]
fn what_cannot_be_used_at_start_is_one_line_and_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let base = format!("backing: {}\nmount: ''\nbind: 127.0.0.1:0\n", at("backing"));
    for text in [
        format!("{base}data: {}\n", at("file/data")),
        format!("{base}data: {}\nlog_file: {}\n", at("data"), at("no/log")),
    ] {
        let file = dir.path().join("c.yml");
        std::fs::write(&file, &text).unwrap();
        let error = refused(&["-config", file.to_str().unwrap()], 1);
        assert_eq!(error.lines().count(), 1, "{text}: {error}");
        assert_eq!(error.matches("os error").count(), 1, "said once: {error}");
    }
}

#[test]
fn dev_refuses_nonsense() {
    refused(&["dev", "-nodes", "0"], 2);
    refused(&["dev", "-runtime", "green-threads"], 2);
    refused(&["dev", "-dir", "/dev/null/x"], 1);
    refused(&["dev", "-port", "0"], 2);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "").unwrap();
    let error = refused(&["dev", "-dir", dir.path().to_str().unwrap()], 1);
    assert!(error.contains("is not empty"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was put there");
}
