//! One line of comma-separated fields, as in `--mount=type=cache,"target=/a,b"`.

use super::mount::MountError;

/// Splits at commas outside double quotes. A field starts with a quote or has none; a doubled quote
/// inside stands for one.
pub(crate) fn fields(line: &str) -> Result<Vec<String>, MountError> {
    let line = line.strip_suffix('\n').map_or(line, |l| l.strip_suffix('\r').unwrap_or(l));
    if line.is_empty() {
        return Err(MountError::Empty);
    }
    let mut out = Vec::new();
    let mut rest = line;
    loop {
        let after = if let Some(quoted) = rest.strip_prefix('"') {
            let (field, after) = quoted_field(quoted)?;
            out.push(field);
            after
        } else {
            let (field, after) = match rest.split_once(',') {
                Some((field, after)) => (field, Some(after)),
                None => (rest, None),
            };
            if field.contains('"') {
                return Err(MountError::Quote { field: field.to_owned() });
            }
            out.push(field.to_owned());
            after
        };
        match after {
            Some(after) => rest = after,
            None => return Ok(out),
        }
    }
}

/// The field up to its closing quote, and what follows the comma behind it.
fn quoted_field(text: &str) -> Result<(String, Option<&str>), MountError> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let Some((part, after)) = rest.split_once('"') else {
            return Err(MountError::Quote { field: text.to_owned() });
        };
        field.push_str(part);
        if let Some(after) = after.strip_prefix('"') {
            field.push('"');
            rest = after;
        } else if let Some(after) = after.strip_prefix(',') {
            return Ok((field, Some(after)));
        } else if after.is_empty() {
            return Ok((field, None));
        } else {
            return Err(MountError::Quote { field: text.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_and_unquotes() {
        assert_eq!(fields(r#"a=1,"b=x,""y""",,c"#).unwrap(), ["a=1", "b=x,\"y\"", "", "c"]);
        assert_eq!(fields("a,").unwrap(), ["a", ""]);
        for bad in ["", "a\"b", "\"a", "\"a\"b"] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }
}
