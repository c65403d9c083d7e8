//! The header of a layer, which says where its tables are.

use super::form::Form;

/// Bytes of the header.
pub const LEN: usize = 112;

const MAGIC: u32 = 0x5146_49fb;
/// Incompatible features: another compression than zlib; extended L2 entries.
const COMPRESSION: u64 = 1 << 3;
const EXTENDED: u64 = 1 << 4;
const ZSTD: u8 = 1;
/// Refcounts have 1 << 4 bits.
const REFCOUNT_ORDER: u32 = 4;

/// What differs between layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its clusters.
    pub form: Form,
    /// Bytes of the disk.
    pub size: u64,
    /// Where the refcount table begins.
    pub refcounts: u64,
    /// How many clusters the refcount table has.
    pub refcount_clusters: u32,
}

impl Header {
    /// The header.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC.to_be_bytes());
        put(4, &3u32.to_be_bytes());
        put(20, &self.form.bits().to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &(self.form.l1_entries(self.size) as u32).to_be_bytes());
        put(40, &self.form.cluster().to_be_bytes());
        put(48, &self.refcounts.to_be_bytes());
        put(56, &self.refcount_clusters.to_be_bytes());
        let features = COMPRESSION | if self.form.is_extended() { EXTENDED } else { 0 };
        put(72, &features.to_be_bytes());
        put(96, &REFCOUNT_ORDER.to_be_bytes());
        put(100, &(LEN as u32).to_be_bytes());
        put(104, &[ZSTD]);
        bytes
    }

    /// Reads a header; `None` if it is not one of a layer in canonical form.
    pub fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        let field =
            |at: usize| bytes[at..at + 8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let size = field(24);
        let form = Form::new((field(16) & 0xff) as u32, size)?;
        let header = Header { form, size, refcounts: field(48), refcount_clusters: (field(56) >> 32) as u32 };
        // All other fields have one value: no backing file, no snapshots, no unknown feature.
        (header.size <= crate::image::MAX_DISK && header.bytes() == *bytes).then_some(header)
    }
}
