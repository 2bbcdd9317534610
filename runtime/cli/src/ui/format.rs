//! Numbers for people.

use std::{borrow::Cow, time::Duration};

/// Text of a file as a terminal may see it: control characters, with which a name could move the cursor or hide what
/// follows, are written as escapes. Line ends and tabs stay.
pub fn plain(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(harmful) {
        return text.into();
    }
    text.chars().map(|c| if harmful(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// A size in binary units: `93.8 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

/// A number of parameters: `134.52 M`.
pub fn count(count: u64) -> String {
    let value = count as f64;
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{:.2} K", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", value / 1e6),
        _ => format!("{:.2} B", value / 1e9),
    }
}

/// So many things: `1 thread`, `2 threads`.
pub fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A time: `843 ms`, `12.3 s`.
pub fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(plain("blk.0\n\tü"), "blk.0\n\tü");
        assert_eq!(plain("a\u{1b}[2Jb\r\u{9b}"), "a\\u{1b}[2Jb\\r\\u{9b}");
    }

    #[test]
    fn units_change_at_their_borders() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(98_362_432), "93.81 MiB");
        assert_eq!(count(999), "999");
        assert_eq!(count(134_515_008), "134.52 M");
        assert_eq!(count(1_235_814_432), "1.24 B");
        assert_eq!([0, 1, 2].map(|n| counted(n, "thread")), ["0 threads", "1 thread", "2 threads"]);
        assert_eq!(seconds(Duration::from_millis(43)), "43 ms");
        assert_eq!(seconds(Duration::from_millis(1500)), "1.50 s");
    }
}
