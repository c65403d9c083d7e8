//! The devices that every machine has, each in its place: one line puts a device on its bus, one connects its
//! interrupt, one saves it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vmm_sys_util::eventfd::EventFd;

use super::vcpus::Buses;
use crate::arch::x86_64::layout;
use crate::bus::{BusDevice, Overlap};
use crate::console::Output;
use crate::devices::boot_timer::BootTimer;
use crate::devices::debug_console::DebugConsole;
use crate::devices::exit_status::ExitStatus;
use crate::devices::ged::Ged;
use crate::devices::pci_address::PciAddress;
use crate::devices::power::{I8042, Power};
use crate::devices::pvpanic::Pvpanic;
use crate::devices::serial::Serial;
use crate::irq::Irq;
use crate::kvm::{self, Vm};
use crate::notice::Notifier;
use crate::sys::event::event;

/// Serial port, power, panic and event devices.
pub struct Platform {
    /// The console's serial port.
    pub serial: Arc<Serial>,
    /// Signals when the serial port takes input again.
    pub serial_drained: EventFd,
    /// The event device, which presses the power button.
    pub ged: Arc<Ged>,
    /// The vCPUs are to come back: no device keeps them.
    pub vcpus_wanted: Arc<AtomicBool>,
    serial_irq: Irq,
    ged_irq: Irq,
}

impl Platform {
    /// Makes the devices.
    pub fn new(output: Output) -> io::Result<Self> {
        let (serial_irq, ged_irq, serial_drained) = (Irq::new()?, Irq::new()?, event()?);
        let vcpus_wanted = Arc::new(AtomicBool::new(true));
        let (irq, drained) = (serial_irq.try_clone()?, serial_drained.try_clone()?);
        Ok(Platform {
            serial: Arc::new(Serial::new(irq, drained, output, Arc::clone(&vcpus_wanted))),
            ged: Arc::new(Ged::new(ged_irq.try_clone()?)),
            serial_drained,
            vcpus_wanted,
            serial_irq,
            ged_irq,
        })
    }

    /// Puts every device in its place.
    pub fn attach(&self, buses: &mut Buses, notifier: &Notifier) -> Result<(), Overlap> {
        let notifier = || notifier.clone();
        let devices: [(layout::Ports, Arc<dyn BusDevice>); 9] = [
            (layout::SERIAL, self.serial.clone()),
            (layout::I8042, Arc::new(I8042(notifier()))),
            (layout::DEBUG_CONSOLE, Arc::new(DebugConsole(self.serial.clone()))),
            (layout::BOOT_TIMER, Arc::new(BootTimer::new(notifier()))),
            (layout::PVPANIC, Arc::new(Pvpanic(notifier()))),
            (layout::EXIT_STATUS, Arc::new(ExitStatus(notifier()))),
            (layout::POWER, Arc::new(Power(notifier()))),
            (layout::GED, self.ged.clone()),
            (layout::PCI_ADDRESS, Arc::new(PciAddress::default())),
        ];
        for (ports, device) in devices {
            buses.pio.insert(ports.start.into(), ports.count.into(), device)?;
        }
        Ok(())
    }

    /// Connects the interrupts.
    pub fn connect(&self, vm: &Vm) -> Result<(), kvm::Error> {
        vm.connect(&self.serial_irq, layout::SERIAL_GSI)?;
        vm.connect(&self.ged_irq, layout::GED_GSI)
    }

    /// Back to power-on.
    pub fn reset(&self) {
        self.serial.reset();
        self.ged.reset();
    }
}
