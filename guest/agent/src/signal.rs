//! Signals by their names (`signal(7)`, x86), as Docker takes them. The host checks with this file what it passes on.

/// From 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Second names.
const ALIASES: [(&str, u32); 3] = [("IOT", 6), ("CLD", 17), ("POLL", 29)];

const REAL_TIME: core::ops::RangeInclusive<u32> = 34..=64;

/// The number of a signal: `SIGTERM`, `TERM`, `term`, `15`, `SIGRTMIN+3`.
pub fn number(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return (1..=*REAL_TIME.end()).contains(&number).then_some(number);
    }
    let name = after("SIG", name).unwrap_or(name);
    if let Some(place) = NAMES.iter().position(|known| known.eq_ignore_ascii_case(name)) {
        return Some(place as u32 + 1);
    }
    if let Some((_, number)) = ALIASES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        return Some(*number);
    }
    let number = match (after("RTMIN", name), after("RTMAX", name)) {
        (Some(""), _) => *REAL_TIME.start(),
        (Some(more), _) => REAL_TIME.start().checked_add(more.strip_prefix('+')?.parse().ok()?)?,
        (_, Some("")) => *REAL_TIME.end(),
        (_, Some(less)) => REAL_TIME.end().checked_sub(less.strip_prefix('-')?.parse().ok()?)?,
        _ => return None,
    };
    REAL_TIME.contains(&number).then_some(number)
}

/// What stands behind `prefix`, in large or small letters.
fn after<'a>(prefix: &str, name: &'a str) -> Option<&'a str> {
    let (head, rest) = name.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals() {
        for (name, wanted) in [
            ("TERM", 15),
            ("SIGKILL", 9),
            ("SIGSYS", 31),
            ("3", 3),
            ("SIGRTMAX-1", 63),
            ("RTMIN", 34),
            ("sigquit", 3),
            ("term", 15),
            ("sigrtmin+3", 37),
            ("SIGCLD", 17),
        ] {
            assert_eq!(number(name), Some(wanted), "{name}");
        }
        for wrong in ["", "SIG", "0", "65", "-1", "SIGä", "RTMIN+31", "RTMIN3", "RTMAX-99999999999"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
