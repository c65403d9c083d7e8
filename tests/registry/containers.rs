//! Container images: they become images of machines, and their layers travel once.

use std::path::Path;
use std::process::Command;

use rvmm::image::{DISK_LAYER, Digest};
use serde_json::{Value, json};

use crate::common::host;
use crate::common::noise::noise;
use crate::home::Home;
use crate::need;
use crate::proxy::Proxy;
use crate::script::{Reply, Request, Script};
use crate::server::{self, Registry};

/// A container image.
pub struct Container {
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
}

const OCI: &str = "application/vnd.oci.image";

/// An archive with one file.
pub fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a scratch directory");
    std::fs::write(directory.path().join(name), content).expect("room");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(directory.path()).args(["--mtime=@0", "--owner=0", "--group=0", "-c", name]);
    let output = tar.output().expect("tar");
    assert!(output.status.success());
    output.stdout
}

impl Container {
    pub fn new(layers: Vec<Vec<u8>>) -> Self {
        let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z",
            "config": {"Cmd": ["/bin/serve"], "Env": ["A=b"], "WorkingDir": "/srv"},
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        Container { config: config.to_string().into_bytes(), layers }
    }

    /// The manifest, with the layers as large as they are.
    pub fn manifest(&self) -> Value {
        let blob = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("{OCI}.{kind}"), "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
        let layers: Vec<Value> = self.layers.iter().map(|layer| blob("layer.v1.tar", layer)).collect();
        json!({"schemaVersion": 2, "mediaType": format!("{OCI}.manifest.v1+json"),
            "config": blob("config.v1+json", &self.config), "layers": layers})
    }

    /// The blob that a request asks for.
    pub fn blob(&self, request: &Request) -> Option<&[u8]> {
        let mut all = self.layers.iter().chain([&self.config]);
        all.find(|bytes| request.path.ends_with(&format!("/blobs/{}", Digest::of(bytes)))).map(Vec::as_slice)
    }

    /// What an honest registry answers.
    pub fn answer(&self, request: &Request) -> Reply {
        let manifest = self.manifest().to_string();
        let digest = Digest::of(manifest.as_bytes()).to_string();
        if let Some(bytes) = self.blob(request) {
            return Reply::new(200, bytes);
        }
        match request.path.rsplit('/').next() {
            Some(last) if request.path.contains("/manifests/") && (last == "1" || last == digest) => {
                Reply::new(200, manifest).header("Content-Type", format!("{OCI}.manifest.v1+json"))
            }
            _ => Reply::new(404, ""),
        }
    }

    /// Writes an OCI layout, and copies it with skopeo.
    fn copy_to(&self, target: &str, format: &str) {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let blobs = directory.path().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("room");
        let manifest = self.manifest().to_string();
        let put = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            std::fs::write(blobs.join(digest.hex()), bytes).expect("room");
            digest.to_string()
        };
        self.layers.iter().chain([&self.config]).for_each(|bytes| drop(put(bytes)));
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": format!("{OCI}.manifest.v1+json"),
            "digest": put(manifest.as_bytes()), "size": manifest.len()}]});
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("room");
        write("index.json", &index.to_string());
        write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        let from = format!("oci:{}", directory.path().display());
        let to = format!("docker://{target}");
        host::run(
            "skopeo",
            &[
                "copy",
                "--quiet",
                "--insecure-policy",
                "--dest-tls-verify=false",
                "--format",
                format,
                &from,
                &to,
            ],
        );
    }
}

/// A file on the disk of an image.
fn read(home: &Home, image: &str, path: &str) -> Vec<u8> {
    let store = home.store();
    let raw = home.path("raw");
    let file = std::fs::File::create(&raw).expect("room");
    let image = store.resolve(image).expect("an image");
    store.export_raw(&image, &file, u64::MAX).expect("a disk");
    let out = home.path("out");
    let dump = format!("dump {path} {}", Path::new(&out).display());
    host::run("debugfs", &["-R", &dump, &raw.display().to_string()]);
    std::fs::read(out).expect("a file")
}

fn disk_layers(home: &Home, image: &str) -> Vec<Digest> {
    let inspected = home.store().inspect(image).expect("an image");
    inspected.manifest.of_type(DISK_LAYER).map(|layer| layer.digest).collect()
}

#[test]
fn docker_and_oci_images_become_machines() {
    need!(server::offered(), host::program("skopeo").map(drop), host::program("debugfs").map(drop));
    let registry = Registry::start();
    let (proxy, address) = Proxy::start(&registry.address);
    let base = layer("base", &noise(30, 3 << 20));
    let page = layer("page", &noise(31, 200 << 10));
    Container::new(vec![base.clone()]).copy_to(&format!("{}/app:1", registry.address), "v2s2");
    Container::new(vec![base.clone(), page]).copy_to(&format!("{}/app:2", registry.address), "oci");

    let home = Home::new();
    let pull = |tag: &str| {
        let name = format!("{address}/app:{tag}");
        home.told(&["pull", &name, "--as", &format!("app:{tag}"), "--size", "512M"])
    };
    proxy.taken();
    assert_eq!(pull("1")["blobs"], 2);
    assert!((3 << 20..4 << 20).contains(&proxy.taken().1));
    let config = home.store().inspect("app:1").expect("an image").config;
    assert_eq!((config.config.cmd, config.config.working_dir), (vec!["/bin/serve".into()], "/srv".into()));
    assert!(read(&home, "app:1", "/base") == noise(30, 3 << 20));

    // Of the second version only its own layer comes, here and in the store.
    assert_eq!(pull("2")["blobs"], 2);
    let (_, from) = proxy.taken();
    assert!((200 << 10..300 << 10).contains(&from), "{from}");
    assert!(read(&home, "app:2", "/page") == noise(31, 200 << 10));
    assert!(home.digest("app:2").is_some());
    let (one, two) = (disk_layers(&home, "app:1"), disk_layers(&home, "app:2"));
    assert!(one.len() == 1 && two.len() == 2 && one[0] == two[0], "{one:?} {two:?}");

    // What did not change is neither fetched nor made again, even when the container's layers are gone.
    home.store().gc().expect("a store");
    assert_eq!(pull("2")["bytes"], 0);
    assert!(proxy.taken().1 < 24 << 10);

    // An image that came from a container goes to a registry as any other.
    let before = home.digest("app:2");
    home.told(&["push", "app:2", &format!("{address}/machine:2")]);
    let there = Home::new();
    there.told(&["pull", &format!("{address}/machine:2"), "--as", "m:2"]);
    assert_eq!(there.digest("m:2"), before);
}

#[test]
fn an_index_leads_to_linux_on_amd64() {
    let container = Container::new(vec![layer("a", b"text")]);
    let manifest = container.manifest().to_string();
    let entry = |arch: &str, digest: Digest| {
        json!({"mediaType": format!("{OCI}.manifest.v1+json"), "digest": digest.to_string(), "size": manifest.len(),
            "platform": {"architecture": arch, "os": "linux"}})
    };
    let right = Digest::of(manifest.as_bytes());
    let manifests = [entry("arm64", Digest::of(b"arm")), entry("amd64", right)];
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    let script = Script::start(move |request| match request.path.ends_with("/manifests/many") {
        true => Reply::new(200, index.clone()).header("Content-Type", format!("{OCI}.index.v1+json")),
        false => container.answer(request),
    });
    let home = Home::new();
    home.told(&["pull", &format!("{}/app:many", script.address), "--as", "app", "--size", "64M"]);
    assert!(home.digest("app").is_some());
    let lines: Vec<String> = script.asked().iter().map(Request::line).collect();
    assert!(lines.contains(&format!("GET /v2/app/manifests/{right}")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains(&Digest::of(b"arm").hex())), "{lines:?}");
}
