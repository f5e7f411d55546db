use super::*;

#[test]
fn escaped_text_holds_nothing_that_html_understands() {
    assert_eq!(escape("a<b> & \"c\" 'd'"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;");
    assert_eq!(escape("\u{0}\u{1b}é\n"), "\u{fffd}\u{fffd}é\n");
}

#[test]
fn a_histogram_counts_every_value_once_in_equal_bins() {
    let counts = |values: &[f64], low: f64, bins: usize| {
        let mut histogram = Histogram::new(low, 1.0, bins);
        values.iter().for_each(|&value| histogram.add(value));
        histogram.counts().to_vec()
    };
    assert_eq!(counts(&[0.0, 0.24, 0.25, 0.5, 0.99, 1.0], 0.0, 4), [2, 1, 1, 2]);
    // Over more than a decade and a half bins are equal in the logarithm.
    assert_eq!(counts(&[0.001, 0.002, 0.02, 0.2, 1.0], 0.001, 3), [2, 1, 2]);
    assert_eq!(counts(&[], 0.0, 2), [0, 0]);
}
