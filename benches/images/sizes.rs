//! How large images are: packed in a registry or a store, and unpacked where they run.

use std::fs;

use rvmm::image::{DISK_LAYER, Store};

use crate::bench::{Failure, World};
use crate::server::Registry;
use crate::system::{self, Layer, System};
use crate::{Figure, Row, on_disk};

const MB: f64 = 1e6;

/// The base, and `versions` versions for each size of change up to `largest` MB.
pub fn measure(world: &World, system: &System, versions: usize, largest: usize) -> Result<Vec<Row>, Failure> {
    let registry = Registry::start();
    let mut rows = Vec::new();
    let base = Image::new(world, &registry, "base", std::slice::from_ref(&system.layer))?;
    let unpacked = on_disk(&system.root);
    rows.push(base.row("base, packed", |image| (image.packed_layers, image.disk_layers)));
    let cache = on_disk(&base.store.path().join("cache"));
    rows.push(row("base, unpacked to run", unpacked, cache));
    for change in [0, 1, 10, 100].into_iter().filter(|&change| change <= largest) {
        let (mut layers, mut upper) = (vec![system.layer.clone()], 0.0);
        for version in 0..versions {
            let directory = world.path("change");
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(directory.join("srv"))?;
            // A file that is touched, and the data.
            fs::write(directory.join("srv/version"), version.to_string())?;
            if change > 0 {
                let data = crate::common::noise::noise((change * 100 + version) as u64, change * 1_000_000);
                fs::write(directory.join(format!("srv/data-{version}")), data)?;
            }
            upper += on_disk(&directory);
            layers.push(system::pack(&directory, &world.path(&format!("v-{change}-{version}.tar.gz")))?);
        }
        let image = Image::new(world, &registry, &format!("v{change}"), &layers)?;
        let what = format!("{versions} versions with {change} MB each, packed");
        rows.push(image.row(&what, |image| {
            (image.packed_layers - base.packed_layers, image.disk_layers - base.disk_layers)
        }));
        let cache_now = on_disk(&image.store.path().join("cache"));
        rows.push(row(
            &format!("{versions} versions with {change} MB each, unpacked"),
            upper,
            cache_now - cache,
        ));
        for layer in &layers[1..] {
            fs::remove_file(&layer.packed)?;
        }
    }
    Ok(rows)
}

fn row(what: &str, container: f64, machine: f64) -> Row {
    let figure = |name: &str, bytes: f64| vec![(name.to_string(), Figure::once(bytes / MB))];
    Row {
        what: what.into(),
        unit: "MB",
        container: figure("OCI", container),
        machine: figure("rvmm", machine),
    }
    .told()
}

/// An image on both sides.
struct Image {
    packed_layers: f64,
    disk_layers: f64,
    store: Store,
}

impl Image {
    fn new(world: &World, registry: &Registry, name: &str, layers: &[Layer]) -> Result<Self, Failure> {
        let target = format!("{}/{name}:1", registry.address);
        system::push(world, layers, &target)?;
        let place = world.path(&format!("store-{name}"));
        let place = place.to_string_lossy();
        world.json(&["--store", &place, "pull", &target, "--as", "image:1", "--size", "4G"])?;
        let store = Store::open(place.as_ref().as_ref())?;
        let image = store.inspect("image:1")?;
        store.unpack(&image.descriptor, u64::MAX)?;
        let packed: u64 =
            layers.iter().filter_map(|layer| Some(fs::metadata(&layer.packed).ok()?.len())).sum();
        let disk: u64 = image.manifest.of_type(DISK_LAYER).map(|layer| layer.size).sum();
        Ok(Image { packed_layers: packed as f64, disk_layers: disk as f64, store })
    }

    fn row(&self, what: &str, of: impl Fn(&Self) -> (f64, f64)) -> Row {
        let (container, machine) = of(self);
        row(what, container, machine)
    }
}
