//! Keys that a person types at a console: `Ctrl-A` and the key of a command are for the program, all others for the guest.

/// `Ctrl-A`.
const ESCAPE: u8 = 1;

/// Takes commands out of a stream of keys.
#[derive(Debug)]
pub struct Escapes {
    /// A person types: else all is for the guest.
    person: bool,
    pending: bool,
}

impl Escapes {
    /// For keys that a person types, or for bytes that come from elsewhere.
    pub fn new(person: bool) -> Self {
        Escapes { person, pending: false }
    }

    /// Appends what is for the guest to `guest`; returns the commands. `command` is the command of a key, if it has one; two
    /// `Ctrl-A` are one for the guest.
    pub fn filter<C>(
        &mut self,
        keys: &[u8],
        guest: &mut Vec<u8>,
        command: impl Fn(u8) -> Option<C>,
    ) -> Vec<C> {
        let mut commands = Vec::new();
        for &key in keys {
            match (std::mem::take(&mut self.pending), key) {
                (false, ESCAPE) if self.person => self.pending = true,
                (false, key) | (true, key @ ESCAPE) => guest.push(key),
                (true, key) => match command(key) {
                    Some(command) => commands.push(command),
                    None => guest.extend([ESCAPE, key]),
                },
            }
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_out_wherever_the_stream_is_cut() {
        let keys = b"ab\x01x\x01\x01c\x01z\x01hx";
        for cut in 0..=keys.len() {
            let (mut escapes, mut guest) = (Escapes::new(true), Vec::new());
            let command = |key| [b'x', b'h'].contains(&key).then_some(key);
            let mut commands = escapes.filter(&keys[..cut], &mut guest, command);
            commands.extend(escapes.filter(&keys[cut..], &mut guest, command));
            assert_eq!((&commands[..], &guest[..]), (&b"xh"[..], &b"ab\x01c\x01zx"[..]), "cut at {cut}");
        }
        let mut guest = Vec::new();
        assert!(Escapes::new(false).filter(keys, &mut guest, Some).is_empty());
        assert_eq!(guest, keys, "nobody types");
    }
}
