//! The memory-mapped register file of a virtio device (virtio 1.2, section 4.2.2).

use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_queue::QueueT;

use super::Function;
use super::function::Interrupt;
use crate::bus::BusDevice;
use crate::sys::lock;

/// Offset of the register that the driver kicks a queue with: a 32-bit write of the queue's index.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"rvmm");
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

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

    fn read_register(&self, register: u32) -> u32 {
        if register == VIRTIO_MMIO_INTERRUPT_STATUS {
            return self.interrupt.status();
        }
        let mut function = lock(&self.function);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => function.device().id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match function.selectors.device_features {
                word @ 0..=1 => (function.offered() >> (32 * word)) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => function.queue().map_or(0, |queue| u32::from(queue.max_size())),
            VIRTIO_MMIO_QUEUE_READY => function.queue().map_or(0, |queue| u32::from(queue.ready())),
            VIRTIO_MMIO_STATUS => function.status(),
            // No shared memory regions: a length of all ones says so.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => function.generation(),
            _ => 0,
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        if register == VIRTIO_MMIO_INTERRUPT_ACK {
            return self.interrupt.acknowledge(value);
        }
        let mut function = lock(&self.function);
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => function.selectors.device_features = value,
            VIRTIO_MMIO_DRIVER_FEATURES => {
                let word = function.selectors.driver_features;
                function.choose_features(word, value);
            }
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => function.selectors.driver_features = value,
            VIRTIO_MMIO_QUEUE_SEL => function.selectors.queue = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                // Kicks arrive through an eventfd in the kernel; this is the way for a driver that kicks oddly.
                if let Some(kick) = function.kicks().get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            VIRTIO_MMIO_STATUS => function.set_status(value),
            _ if function.configurable() => {
                let Some(queue) = function.queue() else { return };
                match register {
                    VIRTIO_MMIO_QUEUE_NUM => queue.set_size(value.min(u32::from(u16::MAX)) as u16),
                    VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value & 1 != 0),
                    VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
                    VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
                    VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
                    VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
                    VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
                    VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
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
                    data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes())
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
            self.write_register(offset as u32, u32::from_le_bytes(value));
        }
    }
}
