//! Passwords and tokens: where they come from, whom they are shown.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::common::host;
use crate::common::machine::Ended;
use crate::containers::{Container, layer};
use crate::home::Home;
use crate::need;
use crate::script::{Reply, Script};
use crate::server::{self, PASSWORD, Registry, USER};

/// `me:secret` in base64.
const BASIC: &str = "bWU6c2VjcmV0";

fn login(home: &Home, registry: &str, password: &str) -> Ended {
    let arguments = ["login", registry, "-u", USER, "--password-stdin"];
    let mut running = home.command(&arguments).stdin(Stdio::piped()).start();
    running.types(&format!("{password}\n"));
    running.finish()
}

#[test]
fn a_password_opens_the_door() {
    need!(server::offered());
    let registry = Registry::with_password();
    let home = Home::new();
    let image = home.version("disk:1", None, 40, 9 << 20);
    let name = format!("{}/disk:1", registry.address);
    home.run(&["push", "disk:1", &name]).failed(1, &["asks for a user and password", "rvmm login"]);
    login(&home, &registry.address, "wrong").failed(1, &["refuses to let us in", "401", "`me`"]);
    home.run(&["push", "disk:1", &name]).failed(1, &["rvmm login"]);

    let said = login(&home, &registry.address, PASSWORD);
    assert!(said.status == 0 && said.out.contains("knows you as me"), "{said}");
    let file = home.path("config/rvmm/registries.json");
    let mode = std::fs::metadata(&file).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    home.told(&["push", "disk:1", &name]);
    home.told(&["pull", &name, "--as", "back:1"]);
    assert_eq!(home.digest("back:1"), Some(image.digest));

    let said = home.run(&["logout", &registry.address]);
    assert!(said.status == 0 && said.out.contains("forgotten"), "{said}");
    home.run(&["pull", &name]).failed(1, &["rvmm login"]);
    home.run(&["logout", &registry.address]).failed(1, &["No login"]);
    assert!(!std::fs::read_to_string(file).expect("a file").contains(BASIC));
}

#[test]
fn logins_of_docker_are_used() {
    need!(server::offered());
    let registry = Registry::with_password();
    let name = format!("{}/disk:1", registry.address);
    let home = Home::new();
    home.version("disk:1", None, 41, 1 << 20);
    std::fs::create_dir(home.path("docker")).expect("room");
    let docker = home.path("docker/config.json");
    let text = format!(r#"{{"auths": {{"{}": {{"auth": "{BASIC}"}}}}}}"#, registry.address);
    std::fs::write(&docker, text).expect("room");
    home.told(&["push", "disk:1", &name]);

    // A helper, which gets the registry on its standard input.
    let text = format!(r#"{{"credHelpers": {{"{}": "of-a-test"}}}}"#, registry.address);
    std::fs::write(&docker, text).expect("room");
    let script = format!(
        "#!/bin/sh\nread -r host\n[ \"$1 $host\" = 'get {}' ] && echo '{{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"secret\"}}'\n",
        registry.address
    );
    std::fs::write(home.path("script"), script).expect("room");
    let [from, to] =
        ["script", "docker-credential-of-a-test"].map(|name| home.path(name).display().to_string());
    // What is written here cannot be executed as long as a child of another test has it open.
    host::run("install", &["-m", "755", &from, &to]);
    home.run(&["pull", &name, "--as", "back:1"]).failed(1, &["Cannot run docker-credential-of-a-test"]);
    let path = format!("{}:{}", home.path("").display(), std::env::var("PATH").unwrap_or_default());
    let pulled = home.command(&["pull", &name, "--as", "back:1"]).env("PATH", path).run();
    assert_eq!(pulled.status, 0, "{pulled}");
}

#[test]
fn a_token_is_for_the_registry_alone() {
    let container = Container::new(vec![layer("a", &[5; 9000])]);
    let bytes = container.layers[0].clone();
    // Where the registry keeps its blobs.
    let elsewhere = Script::start(move |_| Reply::new(200, bytes.clone()));
    let blobs = elsewhere.address.clone();
    let registry = Script::start(move |request| {
        if request.path.starts_with("/token?") {
            let good = request.header("authorization") == Some(&format!("Basic {BASIC}"))
                && request.path.contains("service=here")
                && request.path.contains("scope=repository:team/app:pull");
            let answer = if good { r#"{"access_token": "open"}"# } else { "{}" };
            return Reply::new(if good { 200 } else { 401 }, answer);
        }
        let host = request.header("host").unwrap_or_default();
        if request.header("authorization") != Some("Bearer open") {
            let challenge = format!(
                r#"Bearer realm="http://{host}/token",service="here",scope="repository:team/app:pull""#
            );
            return Reply::new(401, "").header("WWW-Authenticate", challenge);
        }
        match container.blob(request) {
            Some(bytes) if bytes.len() > 5000 => Reply::redirect(format!("http://{blobs}/x?signature=y")),
            _ => container.answer(request),
        }
    });
    let home = Home::new();
    let name = format!("{}/team/app:1", registry.address);
    let pull = ["pull", name.as_str(), "--as", "app", "--size", "64M"];
    home.run(&pull).failed(1, &["asks for a user and password", "rvmm login"]);
    assert!(elsewhere.asked().is_empty());

    std::fs::create_dir(home.path("docker")).expect("room");
    let text = format!(r#"{{"auths": {{"http://{}/v2/": {{"auth": "{BASIC}"}}}}}}"#, registry.address);
    std::fs::write(home.path("docker/config.json"), text).expect("room");
    home.told(&pull);
    let sent = elsewhere.asked();
    assert!(sent.len() == 1 && sent[0].header("authorization").is_none(), "{sent:?}");
}

#[test]
fn a_password_does_not_go_where_it_is_not_safe() {
    for realm in ["http://203.0.113.1/token", "ftp://localhost/token", "http://localhost@203.0.113.1/"] {
        let challenge = format!(r#"Bearer realm="{realm}",service="x""#);
        let script = Script::start(move |_| Reply::new(401, "").header("WWW-Authenticate", &challenge));
        let home = Home::new();
        login(&home, &script.address, PASSWORD).failed(1, &["for a token", "not safe"]);
        assert!(!home.path("config").exists(), "nothing is kept");
    }
}
