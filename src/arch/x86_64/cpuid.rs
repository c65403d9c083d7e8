use kvm_bindings::kvm_cpuid_entry2;
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Mask;
impl Mask {
    pub fn is_empty(&self) -> bool {
        true
    }
}
impl std::str::FromStr for Mask {
    type Err = String;
    fn from_str(_: &str) -> Result<Self, String> {
        Ok(Mask)
    }
}
pub struct Config<'a> {
    pub vcpu: u32,
    pub vcpus: u32,
    pub mask: &'a Mask,
}
pub fn filter(s: &[kvm_cpuid_entry2], _c: &Config) -> Vec<kvm_cpuid_entry2> {
    s.to_vec()
}
pub fn has_gib_pages(s: &[kvm_cpuid_entry2]) -> bool {
    s.iter().any(|e| e.function == 0x80000001 && e.edx & 1 << 26 != 0)
}
