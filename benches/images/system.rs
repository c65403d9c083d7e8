//! The system that both sides have: Debian's minimal one, made once by debootstrap, and layers above it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rvmm::image::Digest;
use serde_json::json;

use crate::bench::{Failure, World};

/// The system, and a place for what is made of it.
pub struct System {
    /// Its files.
    pub root: PathBuf,
    /// The files in an archive, packed as a registry has it.
    pub layer: Layer,
}

/// A layer of a container image.
#[derive(Clone)]
pub struct Layer {
    /// The archive, packed with gzip.
    pub packed: PathBuf,
    /// The digest of the archive.
    pub diff_id: Digest,
}

/// Runs a command to its good end.
pub fn run(command: &mut Command) -> Result<(), Failure> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}

/// Where the system is kept.
pub fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/out/cache/bench-debian")
}

impl System {
    /// Whether it is there already.
    pub fn is_made() -> bool {
        kept().join("etc/debian_version").exists()
    }

    pub fn new(world: &World) -> Result<Self, Failure> {
        let kept = kept();
        if !Self::is_made() {
            println!("making a Debian with debootstrap");
            let beside = kept.with_extension("new");
            let _ = fs::remove_dir_all(&beside);
            fs::create_dir_all(&beside)?;
            run(Command::new("debootstrap").args(["--variant=minbase", "stable"]).arg(&beside))?;
            let _ = fs::remove_dir_all(beside.join("var/cache/apt/archives"));
            fs::rename(&beside, &kept)?;
        }
        let layer = pack(&kept, &world.path("base.tar.gz"))?;
        Ok(System { root: kept, layer })
    }
}

/// Packs the files of a directory.
pub fn pack(directory: &Path, to: &Path) -> Result<Layer, Failure> {
    let tar = to.with_extension("tar");
    run(Command::new("tar")
        .args(["--sort=name", "--numeric-owner", "-C"])
        .arg(directory)
        .arg("-cf")
        .arg(&tar)
        .arg("."))?;
    let (diff_id, _) = Digest::of_reader(&mut File::open(&tar)?)?;
    let packed = File::create(to)?;
    let status = Command::new("gzip").args(["-n", "-c"]).arg(&tar).stdout(packed).status()?;
    fs::remove_file(&tar)?;
    match status.success() {
        true => Ok(Layer { packed: to.into(), diff_id }),
        false => Err("gzip fails".into()),
    }
}

/// Copies a container image of these layers to a registry.
pub fn push(world: &World, layers: &[Layer], target: &str) -> Result<(), Failure> {
    let layout = world.path("layout");
    let _ = fs::remove_dir_all(&layout);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8]| -> Result<_, Failure> {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes)?;
        Ok((digest, bytes.len()))
    };
    let kind = |kind: &str| format!("application/vnd.oci.image.{kind}");
    let ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": ids}});
    let (config, size) = put(config.to_string().as_bytes())?;
    let mut entries = Vec::new();
    for layer in layers {
        let (digest, size) = Digest::of_reader(&mut File::open(&layer.packed)?)?;
        let _ = fs::hard_link(&layer.packed, blobs.join(digest.hex()));
        entries.push(
            json!({"mediaType": kind("layer.v1.tar+gzip"), "digest": digest.to_string(), "size": size}),
        );
    }
    let manifest = json!({"schemaVersion": 2, "mediaType": kind("manifest.v1+json"), "layers": entries,
        "config": {"mediaType": kind("config.v1+json"), "digest": config.to_string(), "size": size}});
    let (manifest, size) = put(manifest.to_string().as_bytes())?;
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": kind("manifest.v1+json"),
        "digest": manifest.to_string(), "size": size}]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
        .arg(format!("oci:{}", layout.display()))
        .arg(format!("docker://{target}")))
}
