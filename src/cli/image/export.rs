//! `rvmm export`: images for other programs.

use std::path::PathBuf;

use super::{archive, whole};
use crate::cli::Common;
use crate::cli::output::Failure;
use crate::cli::store;
use crate::image::Name;

// Options of `export`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm export web --format raw web.img
  rvmm export web --format qcow2 web.qcow2; qemu-img info web.qcow2
  rvmm export web --format oci web.tar; skopeo copy oci-archive:web.tar docker://registry.example/web
  rvmm export web --format tar - | tar -t

raw and qcow2 are the whole disk in one file, as `--disk` takes it. tar is its root file system, oci a container image of it with one layer; both need an \
ext4 file system. To move images between rvmm's, see `rvmm save` and `rvmm push`: those keep layers.")]
pub struct Export {
    /// The image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The file to be written; - is standard output for tar and oci
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What is written
    #[arg(long, value_enum)]
    format: Form,
}

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// The disk as it is, with holes
    Raw,
    /// The disk as QEMU's copy-on-write format
    Qcow2,
    /// A container image as an OCI layout in an archive
    Oci,
    /// The files as an archive
    Tar,
}

impl Export {
    /// Writes the file.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let image = store.resolve(&self.image).map_err(Failure::refused)?;
        match self.format {
            Form::Raw => whole(&self.file, |file| {
                store.export_raw(&image, file, store::LIMIT).map_err(Failure::refused)
            })?,
            Form::Qcow2 => whole(&self.file, |file| {
                store.export_qcow2(&image, file, store::LIMIT).map_err(Failure::refused)
            })?,
            Form::Tar => archive(Some(&self.file), |mut to| {
                store.export_tar(&image, &mut to, store::LIMIT).map_err(Failure::refused)
            })?,
            Form::Oci => archive(Some(&self.file), |mut to| {
                let name = self.image.parse::<Name>().ok();
                store.export_container(&image, name.as_ref(), &mut to, store::LIMIT).map_err(Failure::refused)
            })?,
        }
        Ok(0)
    }
}
