//! Parts of a document that a task writes, between markers.

/// Replaces what is between the markers of a part, or adds it at the end.
/// `task` is what the markers say has written it.
pub(crate) fn replace(document: &str, part: &str, task: &str, text: &str) -> String {
    let [begin, end] = markers(part, task);
    let text = format!("{begin}{}\n{end}", text.trim_end());
    let found = document.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    match found {
        Some((before, after)) => format!("{before}{text}{after}"),
        None => format!("{}\n\n{text}", document.trim_end()),
    }
}

/// What is between the markers now; nothing where there are none.
pub(crate) fn part<'a>(document: &'a str, part: &str, task: &str) -> &'a str {
    let [begin, end] = markers(part, task);
    document
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end))
        .map_or("", |(text, _)| text)
}

fn markers(part: &str, task: &str) -> [String; 2] {
    [
        format!("<!-- begin {part}: written by {task} -->\n"),
        format!("<!-- end {part} -->\n"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_replaced_in_its_place() {
        let first = replace("# Title\n", "a", "us", "one");
        let both = replace(&first, "b", "us", "two");
        let again = replace(&both, "a", "us", "three\n");
        assert_eq!(again, both.replace("one", "three"));
        assert!(again.starts_with("# Title\n\n<!-- begin a"), "{again}");
        assert!(again.ends_with("two\n<!-- end b -->\n"), "{again}");
        assert_eq!(part(&again, "a", "us"), "three\n");
        assert_eq!(part(&again, "c", "us"), "");
    }
}
