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
pub fn filter(s: &[kvm_cpuid_entry2], c: &Config) -> Vec<kvm_cpuid_entry2> {
    let mut v = s.to_vec();
    for e in &mut v {
        if e.function == 1 {
            e.ecx |= 1 << 31 | 1 << 24;
            e.ebx = e.ebx & 0x00ffffff | c.vcpu << 24;
        }
        if e.function == 0xb || e.function == 0x1f {
            e.edx = c.vcpu;
        }
    }
    v
}
pub fn has_gib_pages(s: &[kvm_cpuid_entry2]) -> bool {
    s.iter().any(|e| e.function == 0x80000001 && e.edx & 1 << 26 != 0)
}
