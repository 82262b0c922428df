//! JSON objects that are written back as they were read, but for the fields that Postern changes.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A JSON object as it was read: each field's value byte for byte, in its place.
pub(crate) type Fields = IndexMap<String, Box<RawValue>>;

/// Returns the value of a field; the empty one where the object does not have the field.
pub(crate) fn nested<T: for<'a> Deserialize<'a> + Default>(
    fields: &Fields,
    name: &str,
) -> serde_json::Result<T> {
    match fields.get(name).filter(|value| value.get() != "null") {
        Some(value) => serde_json::from_str(value.get()),
        None => Ok(T::default()),
    }
}

/// Returns the etag of a resource, if it has one.
pub(crate) fn etag(resource: &Fields) -> Option<String> {
    resource.get("etag").and_then(|etag| serde_json::from_str(etag.get()).ok())
}
