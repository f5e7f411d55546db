//! Plain tables and numbers as a person would write them, and tables separated by tabs.

pub mod tsv;

/// A text table: two spaces between columns, a rule under the header; the first column and columns of
/// words stand left, columns of numbers right. Rows that are too short are filled with blanks.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &'_ Vec<String>, c: usize| row.get(c).cloned().unwrap_or_default();
    let columns: Vec<(usize, bool)> = header
        .iter()
        .enumerate()
        .map(|(c, name)| {
            let widest = rows.iter().map(|row| width(&cell(row, c))).max();
            let right = c > 0 && rows.iter().all(|row| looks_numeric(&cell(row, c)));
            (widest.unwrap_or(0).max(width(name)), right)
        })
        .collect();
    let line = |cells: Vec<String>| -> String {
        let padded: Vec<String> = cells
            .iter()
            .zip(&columns)
            .map(|(text, (wide, right))| {
                let blanks = " ".repeat(wide - width(text));
                match right {
                    true => blanks + text,
                    false => text.clone() + &blanks,
                }
            })
            .collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut out = line(header.iter().map(|h| (*h).to_owned()).collect());
    out += &line(columns.iter().map(|(wide, _)| "-".repeat(*wide)).collect());
    for row in rows {
        out += &line((0..header.len()).map(|c| cell(row, c)).collect());
    }
    out
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// A number, with or without a unit; a blank, a dash and `NaN` stand among numbers too.
fn looks_numeric(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-', '−', '.']);
    digits.is_empty() || digits.starts_with(|c: char| c.is_ascii_digit()) || matches!(digits, "NaN" | "inf")
}

/// Four significant digits; scientific below 0.001 and from a million on; whole numbers without a point.
pub fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return format!("{value}");
    }
    // Rounded first, so that 9.9996 is treated as the 10.00 that it will show.
    let rounded = format!("{value:.3e}");
    let exponent: i32 = rounded.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if !(-3..6).contains(&exponent) {
        rounded
    } else if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.*}", (3 - exponent).max(0) as usize)
    }
}

/// A size in bytes, as in `512 B` or `1.50 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // 1023.6 would be shown as "1024": the next unit says it better.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A whole number with commas, as in `20,660`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_words_left_and_numbers_right() {
        let rows = vec![
            vec!["train".into(), "0.0123".into(), "kinase".into()],
            vec!["β-test".into(), "12".into(), "toxin, short".into()],
        ];
        assert_eq!(
            table(&["split", "mse", "label"], &rows),
            "split      mse  label\n\
             ------  ------  ------------\n\
             train   0.0123  kinase\n\
             β-test      12  toxin, short\n"
        );
    }

    #[test]
    fn a_table_without_rows_or_with_short_rows_is_still_a_table() {
        assert_eq!(table(&["a", "b"], &[]), "a  b\n-  -\n");
        assert_eq!(table(&["a", "b"], &[vec!["x".into()]]), "a  b\n-  -\nx\n");
    }

    #[test]
    fn numbers_show_four_significant_digits() {
        let cases = [
            (0.0, "0"),
            (32.0, "32"),
            (31.8765, "31.88"),
            (9.9996, "10.00"),
            (0.0123456, "0.01235"),
            (0.001, "0.001000"),
            (0.00099999, "0.001000"),
            (0.00012345, "1.234e-4"),
            (123_456.7, "123457"),
            (-0.5, "-0.5000"),
            (1.5e6, "1.500e6"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text, "{value:e}");
        }
    }

    #[test]
    fn bytes_use_the_unit_that_keeps_three_digits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.50 KiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (300 << 20, "300 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn thousands_are_separated_by_commas() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(n), text);
        }
    }
}
