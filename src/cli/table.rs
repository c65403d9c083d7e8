//! Tables as people read them, with sizes and ages in few letters.

use std::time::SystemTime;

use super::output::plain;
use crate::image::parse_rfc3339;

/// Columns as wide as their longest cell. Cells may come from anybody.
pub fn table<const N: usize>(head: [&str; N], lines: impl IntoIterator<Item = [String; N]>) -> String {
    let lines = lines.into_iter().map(|line| line.map(|cell| plain(&cell)));
    let rows: Vec<_> = std::iter::once(head.map(String::from)).chain(lines).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  "));
        cells.collect::<String>().trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `7.7MB`, as docker writes sizes: powers of ten.
pub fn size(bytes: u64) -> String {
    let (mut value, mut units) = (bytes as f64, ["kB", "MB", "GB", "TB"].iter());
    let mut unit = "B";
    while value >= 999.5
        && let Some(next) = units.next()
    {
        (value, unit) = (value / 1000.0, next);
    }
    match value {
        _ if unit == "B" => format!("{bytes}B"),
        value if value < 9.995 => format!("{value:.2}{unit}"),
        value if value < 99.95 => format!("{value:.1}{unit}"),
        value => format!("{value:.0}{unit}"),
    }
}

/// `7M`, in powers of two and whole numbers: memory and what it takes on disk.
pub fn binary_size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes}B"),
        1024..1_048_576 => format!("{}K", bytes >> 10),
        1_048_576..10_737_418_240 => format!("{}M", bytes >> 20),
        _ => format!("{}G", bytes >> 30),
    }
}

/// `2 hours ago`, of a time in RFC 3339.
pub fn age(created: &str) -> String {
    let Some(time) = parse_rfc3339(created) else { return "-".into() };
    let seconds = SystemTime::now().duration_since(time).map_or(0, |since| since.as_secs());
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::image::rfc3339;

    #[test]
    fn columns_and_units() {
        let line = |a: &str, b: &str| [a.to_string(), b.to_string()];
        assert_eq!(table(["A", "NAME"], [line("long", "x")]), "A     NAME\nlong  x");
        assert_eq!(table(["A", "B"], [line("\x1b[31m", "x\r")]), "A      B\n?[31m  x?");
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (7_750_000, "7.75MB"),
            (23_456_789, "23.5MB"),
            (8 << 30, "8.59GB"),
            (999_700, "1.00MB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        let ago = |seconds| age(&rfc3339(SystemTime::now() - Duration::from_secs(seconds)));
        assert_eq!(
            (ago(61), ago(7300), ago(86400 * 400)),
            ("1 minute ago".into(), "2 hours ago".into(), "13 months ago".into())
        );
        assert_eq!(age("no time"), "-");
    }
}
