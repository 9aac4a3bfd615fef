//! What is done about each keyword of a schema.

/// The formats that are enforced.
pub const FORMATS: [&str; 10] = [
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "time",
    "uri",
    "uuid",
];

/// The keywords that are enforced.
pub const ENFORCED: [&str; 30] = [
    "$schema",
    "$id",
    "$ref",
    "type",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "minProperties",
    "maxProperties",
    "items",
    "prefixItems",
    "additionalItems",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];

/// What a keyword is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyword {
    /// It says nothing about instances.
    Annotation,
    /// It is enforced: one of [`ENFORCED`].
    Enforced,
    /// It may be there, but what stands in it counts only where a reference leads to it.
    Definitions,
    /// It asks for something that is not enforced, or is no keyword at all.
    Unsupported,
}

/// Sorts a keyword. Names that begin with `x-` are notes of whoever wrote the schema.
#[must_use]
pub fn of(name: &str) -> Keyword {
    match name {
        "title" | "description" | "default" | "examples" | "$comment" | "deprecated"
        | "readOnly" | "writeOnly" | "contentEncoding" | "contentMediaType" | "contentSchema" => {
            Keyword::Annotation
        }
        "$defs" | "definitions" => Keyword::Definitions,
        _ if ENFORCED.contains(&name) => Keyword::Enforced,
        _ if name.starts_with("x-") && name != "x-guidance" => Keyword::Annotation,
        _ => Keyword::Unsupported,
    }
}
