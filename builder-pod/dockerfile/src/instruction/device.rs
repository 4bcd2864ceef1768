//! `RUN --device=NAME[,required]`.

use super::csv::fields;
use super::mount::{MountError, parse_bool};

/// A device that a RUN asks for (CDI name).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Name such as `vendor.com/device=gpu0`; may be empty when none was given.
    pub name: String,
    /// Whether the build fails without it.
    pub required: bool,
}

impl Device {
    /// Reads the value of one `--device` flag.
    ///
    /// # Errors
    /// [`MountError`] for fields that are neither a name nor `required`.
    pub(crate) fn parse(value: &str) -> Result<Self, MountError> {
        let mut device = Self::default();
        for field in fields(value)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), Some(value)),
                None => (field.to_lowercase(), None),
            };
            match (key.as_str(), value) {
                ("required", None) => device.required = true,
                ("required", Some(value)) => device.required = parse_bool("required", value)?,
                ("name", Some(value)) if device.name.is_empty() => value.clone_into(&mut device.name),
                // A name may hold an equals sign itself.
                (key, _) if device.name.is_empty() && (value.is_none() || key != "name") => {
                    device.name = field;
                }
                _ => return Err(MountError::Key { key, field, known: &["name", "required"] }),
            }
        }
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let gpu = Device { name: "a/b=c".into(), required: true };
        assert_eq!(Device::parse("a/b=c,required").unwrap(), gpu);
        assert_eq!(Device::parse("name=a/b=c,required=1").unwrap(), gpu);
        assert!(Device::parse("a,b").is_err());
        assert!(Device::parse("a,required=maybe").is_err());
    }
}
