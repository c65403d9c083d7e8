//! What the second version of an image costs to move after the first, counted on the wire.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rvmm::disk::State;
use rvmm::image::{Change, Commit, Name, Store};

use crate::bench::{Failure, World};
use crate::common::noise::noise;
use crate::proxy::Proxy;
use crate::server::Registry;
use crate::system::{self, Layer, System, run};
use crate::{Figure, Row};

const MB: f64 = 1e6;

/// Bytes of the file that a database might have, and of what changes in it.
const FILE: usize = 100_000_000;
const BLOCK: usize = 4096;
const BLOCKS: usize = 256;

pub fn measure(world: &World, system: &System) -> Result<Vec<Row>, Failure> {
    let registry = Registry::start();
    let (proxy, address) = Proxy::start(&registry.address);
    let mut rows = Vec::new();
    // A file of 10 MB is added.
    let added = layer(world, "added", &noise(7, 10_000_000))?;
    let wire = Wire { world, proxy: &proxy, address: &address };
    rows.extend(wire.versions("a file of 10 MB added", std::slice::from_ref(&system.layer), added)?);
    // 256 blocks of a file of 100 MB change in their places: a layer of a container has the whole file again.
    let mut data = noise(8, FILE);
    let before = layer(world, "before", &data)?;
    let image = wire.pulled(&[system.layer.clone(), before.clone()], "file")?;
    for block in 0..BLOCKS {
        let at = block * (FILE / BLOCKS) / BLOCK * BLOCK;
        data[at..at + BLOCK].copy_from_slice(&noise(block as u64 + 1000, BLOCK));
    }
    let after = layer(world, "after", &data)?;
    let oci = wire.containers("edit", &[system.layer.clone(), before], after)?;
    let machine = wire.edited(&image, &data)?;
    rows.extend(both("1 MB changed in a file of 100 MB", oci, machine));
    Ok(rows)
}

fn layer(world: &World, name: &str, content: &[u8]) -> Result<Layer, Failure> {
    let directory = world.path(name);
    fs::create_dir_all(directory.join("srv"))?;
    fs::write(directory.join("srv/data"), content)?;
    system::pack(&directory, &world.path(&format!("{name}.tar.gz")))
}

fn both(what: &str, container: (u64, u64), machine: (u64, u64)) -> [Row; 2] {
    let row = |way: &str, container: u64, machine: u64| {
        let figure = |name: &str, bytes: u64| vec![(name.to_string(), Figure::once(bytes as f64 / MB))];
        let what = format!("{way} of version 2: {what}");
        Row { what, unit: "MB", container: figure("skopeo", container), machine: figure("rvmm", machine) }
            .told()
    };
    [row("push", container.0, machine.0), row("pull", container.1, machine.1)]
}

struct Wire<'a> {
    world: &'a World,
    proxy: &'a Arc<Proxy>,
    address: &'a str,
}

impl Wire<'_> {
    /// Both sides with the same layers.
    fn versions(&self, what: &str, base: &[Layer], top: Layer) -> Result<[Row; 2], Failure> {
        let container = self.containers("added", base, top.clone())?;
        let store = self.pulled(&[base, &[top]].concat(), "both")?;
        self.rvmm(&[
            "--store",
            &store,
            "pull",
            &format!("{}/from-both:base", self.address),
            "--as",
            "image:base",
            "--size",
            "4G",
        ])?;
        let machine = self.moved(&store, "both", "image:base", "image:1")?;
        Ok(both(what, container, machine))
    }

    fn rvmm(&self, arguments: &[&str]) -> Result<(), Failure> {
        self.world.json(arguments).map(drop)
    }

    /// Pushes layers and pulls them into a store as `image:1`, and all but the last as `base`; gives the store.
    fn pulled(&self, layers: &[Layer], name: &str) -> Result<String, Failure> {
        let place = self.world.path(&format!("wire-{name}")).to_string_lossy().into_owned();
        let target = |tag: &str| format!("{}/from-{name}:{tag}", self.address);
        system::push(self.world, &layers[..layers.len() - 1], &target("base"))?;
        system::push(self.world, layers, &target("1"))?;
        self.rvmm(&["--store", &place, "pull", &target("1"), "--as", "image:1", "--size", "4G"])?;
        Ok(place)
    }

    /// Bytes to the registry and from it, for the second of two versions.
    fn moved(&self, store: &str, name: &str, first: &str, second: &str) -> Result<(u64, u64), Failure> {
        let there = self.world.path(&format!("there-{name}")).to_string_lossy().into_owned();
        let target = |tag: &str| format!("{}/machine-{name}:{tag}", self.address);
        self.rvmm(&["--store", store, "push", first, &target("1")])?;
        self.rvmm(&["--store", &there, "pull", &target("1")])?;
        self.proxy.taken();
        self.rvmm(&["--store", store, "push", second, &target("2")])?;
        let (to, _) = self.proxy.taken();
        self.rvmm(&["--store", &there, "pull", &target("2")])?;
        Ok((to, self.proxy.taken().1))
    }

    /// As [`Wire::moved`], for containers and skopeo, which copies to a layout what is not there.
    fn containers(&self, name: &str, base: &[Layer], top: Layer) -> Result<(u64, u64), Failure> {
        let target = |tag: &str| format!("{}/container-{name}:{tag}", self.address);
        let blobs = self.world.path(&format!("blobs-{name}"));
        let pull = |tag: &str| {
            let layout = self.world.path(&format!("pulled-{name}-{tag}"));
            run(Command::new("skopeo")
                .args([
                    "copy",
                    "--quiet",
                    "--insecure-policy",
                    "--src-tls-verify=false",
                    "--dest-shared-blob-dir",
                ])
                .arg(&blobs)
                .arg(format!("docker://{}", target(tag)))
                .arg(format!("oci:{}:x", layout.display())))
        };
        system::push(self.world, base, &target("1"))?;
        pull("1")?;
        self.proxy.taken();
        system::push(self.world, &[base, &[top]].concat(), &target("2"))?;
        let (to, _) = self.proxy.taken();
        pull("2")?;
        Ok((to, self.proxy.taken().1))
    }

    /// The file on the disk of `image:1` gets the content `data`, as a guest writes it in its place.
    fn edited(&self, store: &str, data: &[u8]) -> Result<(u64, u64), Failure> {
        let images = Store::open(store.as_ref())?;
        let first = images.resolve("image:1")?;
        let raw = self.world.path("raw");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&raw)?;
        images.export_raw(&first, &file, u64::MAX)?;
        let size = file.metadata()?.len();
        let listed = crate::common::host::run("debugfs", &["-R", "blocks /srv/data", &raw.to_string_lossy()]);
        let mut changes = Vec::new();
        for (block, part) in listed.split_whitespace().zip(data.chunks(BLOCK)) {
            let at = block.parse::<u64>()? * BLOCK as u64;
            let mut old = vec![0; part.len()];
            file.read_exact_at(&mut old, at)?;
            if old != part {
                file.write_all_at(part, at)?;
                changes.push((at..at + BLOCK as u64, State::Data));
            }
        }
        changes.sort_by_key(|(range, _)| range.start);
        let about = Commit { parent: Some(&first), message: "edited", ..Commit::new(UNIX_EPOCH) };
        let mut lease = images.lease()?;
        let second = images.commit(&mut lease, &about, Some(&Change { file: &file, size, changes }))?;
        images.tag(&"image:2".parse::<Name>()?, &second)?;
        self.moved(store, "edit", "image:1", "image:2")
    }
}
