//! Serial port, a 16550A UART (vm-superio has its registers): the guest's console.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState};
use vmm_sys_util::eventfd::EventFd;

use super::last_words::LastWords;
use crate::bus::BusDevice;
use crate::console::Output;
use crate::irq::Irq;
use crate::snapshot::{self, Persist, Saved};
use crate::sys::lock;

/// Tells the console's input side that the port takes bytes again.
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

/// The registers. What the guest sends goes through a buffer, so that nobody waits for the output with the lock in hand.
type Uart = vm_superio::Serial<Irq, Drained, Vec<u8>>;

/// The serial port.
pub struct Serial {
    uart: Mutex<Uart>,
    last_words: Mutex<LastWords>,
    output: Output,
    wanted: Arc<AtomicBool>,
    /// The guest has written something since it was switched on.
    spoken: AtomicBool,
}

impl Serial {
    /// A port that writes to `output`, interrupts through `irq` and signals `drained` when it takes input again. A vCPU waits
    /// for room in the output unless vCPUs are `wanted` elsewhere.
    pub fn new(irq: Irq, drained: EventFd, output: Output, wanted: Arc<AtomicBool>) -> Self {
        Serial {
            uart: Mutex::new(Uart::with_events(irq, Drained(drained), Vec::new())),
            last_words: Mutex::default(),
            output,
            wanted,
            spoken: AtomicBool::new(false),
        }
    }

    /// Gives the guest input; returns how many bytes found room.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.uart().enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// Writes to the output for a vCPU.
    pub fn output(&self, bytes: &[u8]) {
        self.spoken.store(true, Ordering::Relaxed);
        self.output.write(bytes, || !self.wanted.load(Ordering::SeqCst));
    }

    /// Writes to the output what the monitor has to say, which waits for nothing.
    pub fn tell(&self, bytes: &[u8]) {
        self.output.write(bytes, || false);
    }

    /// Back to power-on.
    pub fn reset(&self) {
        let mut uart = self.uart();
        let _ = set(&mut uart, SerialState::default());
        uart.events().in_buffer_empty();
        *self.last_words() = LastWords::default();
        self.spoken.store(false, Ordering::Relaxed);
    }

    /// Whether the guest has written anything since it was switched on.
    pub fn has_spoken(&self) -> bool {
        self.spoken.load(Ordering::Relaxed)
    }

    /// Whether the guest's kernel has just written that it panics.
    pub fn tells_of_a_panic(&self) -> bool {
        self.last_words().are_a_panic()
    }

    fn last_words(&self) -> MutexGuard<'_, LastWords> {
        lock(&self.last_words)
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        lock(&self.uart)
    }
}

/// Offset of the register that the loopback is switched with.
const MODEM_CONTROL: u64 = 4;

/// Replaces the registers and keeps the wires. The state's input fits the buffer.
fn set(uart: &mut Uart, state: SerialState) -> Result<(), &'static str> {
    let irq = uart.interrupt_evt().try_clone().map_err(|_| "its interrupt cannot be shared")?;
    let drained = uart.events().0.try_clone().map_err(|_| "its event cannot be shared")?;
    *uart = Uart::from_state(&state, irq, Drained(drained), Vec::new())
        .map_err(|_| "its input buffer is too long")?;
    Ok(())
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        data[0] = self.uart().read(offset as u8);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.uart();
        let _ = uart.write(offset as u8, data[0]);
        if offset == MODEM_CONTROL {
            // Perhaps the end of a loopback, in which the port takes nothing from outside.
            uart.events().in_buffer_empty();
        }
        let sent = std::mem::take(uart.writer_mut());
        drop(uart);
        if !sent.is_empty() {
            self.last_words().hear(&sent);
            self.output(&sent);
        }
    }
}

const KIND: &str = "serial";
const VERSION: u32 = 1;

/// Bytes that the UART holds for the guest at most.
const FIFO: usize = 64;

/// Saved registers of the port.
#[derive(Serialize, Deserialize)]
struct State {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
}

impl Persist for &Serial {
    fn save(&self) -> Saved {
        let state = self.uart().state();
        let state = State {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        };
        Saved::pack(KIND, VERSION, &state)
    }

    fn load(&mut self, saved: &Saved) -> Result<(), snapshot::Error> {
        let invalid = |reason: &str| snapshot::Error::Invalid { kind: KIND, reason: reason.into() };
        let state: State = saved.unpack(KIND, VERSION)?;
        if state.input.len() > FIFO {
            return Err(invalid("its input buffer is too long"));
        }
        let state = SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input,
        };
        set(&mut self.uart(), state).map_err(invalid)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn says_when_it_takes_input_again() {
        let drained = EventFd::new(EFD_NONBLOCK).unwrap();
        let told = drained.try_clone().unwrap();
        let serial = Serial::new(Irq::new().unwrap(), drained, Output::line(std::io::sink()), Arc::default());
        const LOOPBACK: u8 = 0x10;
        serial.write(MODEM_CONTROL, &[LOOPBACK]);
        let _ = told.read();
        assert_eq!(serial.input(&[b'a'; 100]), 0);
        serial.write(MODEM_CONTROL, &[0]);
        told.read().unwrap();
        assert_eq!(serial.input(&[b'a'; 100]), FIFO);
        assert_eq!(serial.input(b"b"), 0);
        serial.reset();
        told.read().unwrap();
        assert_eq!(serial.input(b"b"), 1);
    }
}
