//! What a process writes, while it runs.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// What a process writes, collected by a thread.
pub struct Stream {
    shared: Arc<(Mutex<Text>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    pub fn new(mut source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Text::default()), Condvar::new()));
        let (text, changed) = (Arc::clone(&shared), Arc::clone(&shared));
        let reader = thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                let count = source.read(&mut piece).unwrap_or(0);
                let mut text = text.0.lock().expect("no panic");
                text.bytes.extend(&piece[..count]);
                text.ended = count == 0;
                changed.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Stream { shared, reader: Some(reader) }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.0.lock().expect("no panic").bytes).into_owned()
    }

    /// Waits until the text satisfies `condition`. False if it ended before, or at the deadline.
    pub fn wait(&self, deadline: Instant, condition: impl Fn(&str) -> bool) -> bool {
        let (text, changed) = &*self.shared;
        let mut text = text.lock().expect("no panic");
        loop {
            if condition(&String::from_utf8_lossy(&text.bytes)) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if text.ended || left.is_zero() {
                return false;
            }
            text = changed.wait_timeout(text, left).expect("no panic").0;
        }
    }

    pub fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no panic");
        }
        self.text()
    }
}
