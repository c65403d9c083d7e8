//! Says every byte that COM1 gets, and after `q` how many there were.

use crate::serial::COM1;
use crate::{Result, cpu, print};

const LINE_STATUS: u16 = COM1 + 5;
const DATA_READY: u8 = 1;

pub fn run() -> Result {
    print!("listening\n");
    for count in 1u64.. {
        while cpu::in8(LINE_STATUS) & DATA_READY == 0 {
            core::hint::spin_loop();
        }
        let byte = cpu::in8(COM1);
        print!("heard ", [byte][..], "\n");
        if byte == b'q' {
            print!("heard ", count, " in all\n");
            break;
        }
    }
    Ok(())
}
