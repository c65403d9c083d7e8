//! The devices, as the guest's ACPI interpreter sees them (ACPI 6.5, 5.2.11.1 and chapter 20).

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};
use vm_memory::GuestAddress;

use super::{Config, EVENT_GENERATION, EVENT_POWER_BUTTON, MmioDevice, SLEEP_TYPE_OFF, table};
use crate::arch::x86_64::layout::{self, Ports};

/// Present, enabled, shown and working.
const WORKING: u8 = 0xf;
/// Bytes of the clock's page.
const PAGE: u32 = 4096;
/// What a device is notified of: for the button that it was pressed, for the generation that it changed.
const NOTIFICATION: u8 = 0x80;
const BUTTON: &str = "\\_SB_.PWRB";
const GENERATION: &str = "\\_SB_.VMGN";
const CLOCK: &str = "\\_SB_.VCLK";

/// The whole table.
pub fn build(config: &Config) -> Vec<u8> {
    let mut devices = vec![power_button()];
    devices.extend(config.vmgenid.map(generation));
    devices.extend(config.vmclock.map(clock));
    let told = [(config.vmgenid, GENERATION), (config.vmclock, CLOCK)];
    devices.push(event_device(told.into_iter().filter(|(place, _)| place.is_some()).map(|(_, path)| path)));
    devices.extend(config.com1.then(serial));
    devices.extend(config.i8042.then(keyboard));
    devices.extend(config.pvpanic.then(panic_device));
    devices.extend(config.virtio.iter().enumerate().map(|(index, device)| virtio(index, device)));

    let mut body = Vec::new();
    let devices: Vec<&dyn Aml> = devices.iter().map(|device| device as &dyn Aml).collect();
    Scope::new("_SB_".into(), devices).to_aml_bytes(&mut body);
    let off = Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut body);
    table(*b"DSDT", 2, &body)
}

/// AML that is ready.
struct Code(Vec<u8>);

impl Aml for Code {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn device(path: &str, children: Vec<&dyn Aml>) -> Code {
    let mut code = Vec::new();
    Device::new(path.into(), children).to_aml_bytes(&mut code);
    Code(code)
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

fn io(ports: Ports) -> IO {
    IO::new(ports.start, ports.start, 1, ports.count as u8)
}

/// An interrupt of a consumer: edge-triggered, active high, exclusive.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn power_button() -> Code {
    device("PWRB", vec![&name("_HID", &EISAName::new("PNP0C0C")), &name("_UID", &ZERO)])
}

/// The generation identifier (Microsoft, Virtual Machine Generation ID). Linux knows the second name.
fn generation(address: GuestAddress) -> Code {
    let (low, high) = (address.0 as u32, (address.0 >> 32) as u32);
    device(
        "VMGN",
        vec![
            &name("_HID", &"RVMM0001"),
            &name("_CID", &Package::new(vec![&"VM_Gen_Counter", &"VMGENCTR"])),
            &name("_DDN", &"VM_Gen_Counter"),
            &name("ADDR", &Package::new(vec![&low, &high])),
        ],
    )
}

/// The page that tells of another clock (UAPI.13, VMClock).
fn clock(address: GuestAddress) -> Code {
    let page = Memory32Fixed::new(true, address.0 as u32, PAGE);
    device(
        "VCLK",
        vec![
            &name("_HID", &"AMZNC10C"),
            &name("_CID", &"VMCLOCK"),
            &name("_CRS", &ResourceTemplate::new(vec![&page])),
            &name("_STA", &WORKING),
        ],
    )
}

/// The generic event device (ACPI 6.5, 5.6.9): one interrupt, and a port that says what it was for.
fn event_device(of_generation: impl Iterator<Item = &'static str>) -> Code {
    let event = Local(0);
    let pending = Path::new("EVNT");
    let fetch = Store::new(&event, &pending);
    let mut notices = vec![notify_if(&event, EVENT_POWER_BUTTON, BUTTON)];
    notices.extend(of_generation.map(|path| notify_if(&event, EVENT_GENERATION, path)));
    let mut body: Vec<&dyn Aml> = vec![&fetch];
    body.extend(notices.iter().map(|notice| notice as &dyn Aml));
    let fields = vec![FieldEntry::Named(*b"EVNT", 8)];
    device(
        "GED_",
        vec![
            &name("_HID", &"ACPI0013"),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&interrupt(layout::GED_GSI)])),
            &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &layout::GED.start, &layout::GED.count),
            &Field::new(
                "EVTR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                fields,
            ),
            &Method::new("_EVT".into(), 1, true, body),
        ],
    )
}

/// `If (event & bit) { Notify (target, 0x80) }`
fn notify_if(event: &Local, bit: u8, target: &str) -> Code {
    let mut code = Vec::new();
    let target = Path::new(target);
    If::new(&And::new(&ZERO, event, &bit), vec![&Notify::new(&target, &NOTIFICATION)])
        .to_aml_bytes(&mut code);
    Code(code)
}

fn serial() -> Code {
    device(
        "COM1",
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &ZERO),
            &name("_DDN", &"COM1"),
            &name("_CRS", &ResourceTemplate::new(vec![&io(layout::SERIAL), &interrupt(layout::SERIAL_GSI)])),
        ],
    )
}

fn keyboard() -> Code {
    let (data, command) = (layout::I8042.start, layout::I8042.start + layout::I8042.count - 1);
    let port = |start| io(Ports { start, count: 1 });
    device(
        "KBD_",
        vec![
            &name("_HID", &EISAName::new("PNP0303")),
            &name("_CRS", &ResourceTemplate::new(vec![&port(data), &port(command), &interrupt(1)])),
        ],
    )
}

fn panic_device() -> Code {
    device(
        "PEVT",
        vec![
            &name("_HID", &"QEMU0001"),
            &name("_CRS", &ResourceTemplate::new(vec![&io(layout::PVPANIC)])),
            &name("_STA", &WORKING),
        ],
    )
}

fn virtio(index: usize, place: &MmioDevice) -> Code {
    let registers = Memory32Fixed::new(true, place.base, place.size);
    device(
        &format!("V{:03X}", index & 0xfff),
        vec![
            &name("_HID", &"LNRO0005"),
            &name("_UID", &index),
            &name("_CRS", &ResourceTemplate::new(vec![&registers, &interrupt(place.gsi)])),
        ],
    )
}
