//! The memory-mapped register file of a virtio device (virtio 1.2, section 4.2.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::QueueT;

use super::Function;
use super::function::Interrupt;
use crate::bus::BusDevice;

/// Offset of the register that the driver kicks a queue with: a 32-bit write of the queue's index.
pub const QUEUE_NOTIFY: u64 = 0x50;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"rvmm");
const CONFIG: u64 = 0x100;

/// The registers of one function.
pub struct Mmio {
    function: Arc<Mutex<Function>>,
    interrupt: Arc<Interrupt>,
}

impl Mmio {
    /// Registers for `function`.
    pub fn new(function: &Arc<Mutex<Function>>) -> Self {
        let interrupt = Arc::clone(lock(function).interrupt());
        Mmio { function: Arc::clone(function), interrupt }
    }

    fn read_register(&self, offset: u64) -> u32 {
        if offset == 0x060 {
            return self.interrupt.status();
        }
        let mut function = lock(&self.function);
        match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => function.device().id(),
            0x00c => VENDOR,
            0x010 => match function.selectors.device_features {
                word @ 0..=1 => (function.offered() >> (32 * word)) as u32,
                _ => 0,
            },
            0x034 => function.queue().map_or(0, |queue| u32::from(queue.max_size())),
            0x044 => function.queue().map_or(0, |queue| u32::from(queue.ready())),
            0x070 => function.status(),
            // No shared memory regions: a length of all ones says so.
            0x0b0..=0x0bc => u32::MAX,
            0x0fc => function.generation(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == 0x064 {
            return self.interrupt.acknowledge(value);
        }
        let mut function = lock(&self.function);
        match offset {
            0x014 => function.selectors.device_features = value,
            0x020 => {
                let word = function.selectors.driver_features;
                function.choose_features(word, value);
            }
            0x024 => function.selectors.driver_features = value,
            0x030 => function.selectors.queue = value,
            QUEUE_NOTIFY => {
                // Kicks arrive through an eventfd in the kernel; this is the way for a driver that kicks oddly.
                if let Some(kick) = function.kicks().get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            0x070 => function.set_status(value),
            _ if function.configurable() => {
                let Some(queue) = function.queue() else { return };
                match offset {
                    0x038 => queue.set_size(value.min(u32::from(u16::MAX)) as u16),
                    0x044 => queue.set_ready(value & 1 != 0),
                    0x080 => queue.set_desc_table_address(Some(value), None),
                    0x084 => queue.set_desc_table_address(None, Some(value)),
                    0x090 => queue.set_avail_ring_address(Some(value), None),
                    0x094 => queue.set_avail_ring_address(None, Some(value)),
                    0x0a0 => queue.set_used_ring_address(Some(value), None),
                    0x0a4 => queue.set_used_ring_address(None, Some(value)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

impl BusDevice for Mmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset < CONFIG {
            match data.len() {
                4 if offset.is_multiple_of(4) => {
                    data.copy_from_slice(&self.read_register(offset).to_le_bytes())
                }
                _ => data.fill(0),
            }
            return;
        }
        let function = lock(&self.function);
        let start = (offset - CONFIG) as usize;
        let config = function.device().config();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = config.get(start + i).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            return lock(&self.function).write_config((offset - CONFIG) as usize, data);
        }
        if let (0, Ok(value)) = (offset % 4, data.try_into()) {
            self.write_register(offset, u32::from_le_bytes(value));
        }
    }
}

/// Takes the lock; a panic elsewhere must not take the guest's devices away.
pub(super) fn lock(function: &Mutex<Function>) -> MutexGuard<'_, Function> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}
