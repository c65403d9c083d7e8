//! What it takes to make a version of what runs: of its disk, and of its memory as well.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::SystemTime;

use rvmm::disk::State;
use rvmm::image::{Change, Commit, Store};

use crate::bench::{Failure, Samples, World, timed};
use crate::common::noise::noise;
use crate::server::Registry;
use crate::system::{self, System, run};
use crate::{Figure, Row};

const CHANGE: usize = 1_000_000;

pub fn measure(world: &World, system: &System, runs: usize) -> Result<Vec<Row>, Failure> {
    let registry = Registry::start();
    let target = format!("{}/capture:1", registry.address);
    system::push(world, std::slice::from_ref(&system.layer), &target)?;
    let (mut umoci, mut buildah, mut ours) = (Samples::default(), Samples::default(), Samples::default());
    let layout = world.path("capture-layout");
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"])
        .arg(format!("docker://{target}"))
        .arg(format!("oci:{}:base", layout.display())))?;
    let place = world.path("capture-store");
    world.json(&["--store", &place.to_string_lossy(), "pull", &target, "--as", "image:1", "--size", "4G"])?;
    let store = Store::open(&place)?;
    let parent = store.resolve("image:1")?;
    let image = format!("{}:base", layout.display());
    let bundle = world.path("capture-bundle");
    run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
    let mut builder = Builder::new(world, &image);
    for round in 0..=runs {
        let data = noise(round as u64 + 500, CHANGE);
        fs::write(bundle.join("rootfs/srv/data"), &data)?;
        let tag = format!("{}:v{round}", layout.display());
        let (time, result) =
            timed(|| run(Command::new("umoci").args(["repack", "--image", &tag]).arg(&bundle)));
        result?;
        umoci.0.push(time);
        let built = match &mut builder {
            Ok(builder) => builder.commit(&data),
            Err(error) => Err(error.to_string().into()),
        };
        match built {
            Ok(time) => buildah.0.push(time),
            Err(error) if round == 0 => println!("buildah is left out: {error}"),
            Err(_) => {}
        }
        let mut file = tempfile::tempfile()?;
        file.write_all(&vec![0; 8 << 20])?;
        std::os::unix::fs::FileExt::write_all_at(&file, &data, 4 << 20)?;
        let about = Commit { parent: Some(&parent), message: "captured", ..Commit::new(SystemTime::now()) };
        let range = 4 << 20..(4 << 20) + (CHANGE as u64).next_multiple_of(4096);
        let change = Change { file: &file, size: 4 << 30, changes: vec![(range, State::Data)] };
        let (time, result) = timed(|| store.commit(&mut store.lease()?, &about, Some(&change)));
        result?;
        ours.0.push(time);
    }
    // The first round warms the caches.
    for list in [&mut umoci, &mut buildah, &mut ours] {
        list.0 = list.0.split_off(list.0.len().min(1));
    }
    let mut container = vec![("umoci repack".to_string(), Figure::of(&umoci))];
    if !buildah.0.is_empty() {
        container.push(("buildah commit".to_string(), Figure::of(&buildah)));
    }
    let machine = vec![("rvmm's commit of the disk".to_string(), Figure::of(&ours))];
    let disk = Row { what: "capture of 1 MB of changes".into(), unit: "ms", container, machine }.told();
    Ok(vec![disk, warm(world, runs)?])
}

/// Memory is what containers do not capture.
fn warm(world: &World, runs: usize) -> Result<Row, Failure> {
    let machine = world.boot("warm", 256, "hello end=hlt", &[])?;
    machine.says("OK hello")?;
    let (mut pause, mut whole) = (Samples::default(), Samples::default());
    for round in 0..=runs {
        let (time, report) = timed(|| world.create("warm", "warm-bundle"));
        let report = report?;
        if round > 0 {
            whole.0.push(time);
            pause.0.push(report["pause_us"].as_f64().unwrap_or(f64::NAN) / 1e3);
        }
    }
    let machine = vec![
        ("rvmm, pause".to_string(), Figure::of(&pause)),
        ("rvmm, in all".to_string(), Figure::of(&whole)),
    ];
    Ok(Row { what: "capture with memory (256 MiB)".into(), unit: "ms", container: Vec::new(), machine }
        .told())
}

/// A container of buildah, in a storage of its own.
struct Builder {
    storage: Vec<String>,
    container: String,
    count: usize,
}

impl Builder {
    fn new(world: &World, image: &str) -> Result<Self, Failure> {
        let place = |name: &str| world.path(name).to_string_lossy().into_owned();
        let storage =
            ["--root", &place("buildah"), "--runroot", &place("buildah-run"), "--storage-driver", "overlay"];
        let storage: Vec<String> = storage.map(String::from).into();
        let mut command = Command::new("buildah");
        let output = command.args(&storage).args(["from", "--quiet", &format!("oci:{image}")]).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().into());
        }
        let container = String::from_utf8_lossy(&output.stdout).trim().to_string();
        Ok(Builder { storage, container, count: 0 })
    }

    fn commit(&mut self, data: &[u8]) -> Result<f64, Failure> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(data)?;
        let buildah = || {
            let mut command = Command::new("buildah");
            command.args(&self.storage);
            command
        };
        run(buildah().args(["copy", "--quiet", &self.container]).arg(file.path()).arg("/srv/data"))?;
        let name = format!("bench:{}", self.count);
        let (time, result) = timed(|| run(buildah().args(["commit", "--quiet", &self.container, &name])));
        self.count += 1;
        result.map(|()| time)
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        let _ = Command::new("buildah").args(&self.storage).args(["rm", "--all"]).output();
    }
}
