//! Patches: RFC 7396, and of Kubernetes' own sort what the kinds here need of it.

use serde_json::Value;

/// Merges a patch into an object (RFC 7396).
pub(crate) fn merge(object: &mut Value, patch: &Value) {
    walk(object, patch, None);
}

/// Merges a patch into an object as Kubernetes does for its own types: conditions by their type, which also takes them away
/// (`$patch: delete`), other lists whole.
pub(crate) fn merge_strategically(object: &mut Value, patch: &Value) {
    walk(object, patch, Some("conditions"));
}

fn walk(object: &mut Value, patch: &Value, by_type: Option<&str>) {
    let Value::Object(fields) = patch else {
        object.clone_from(patch);
        return;
    };
    if !object.is_object() {
        *object = Value::Object(serde_json::Map::new());
    }
    for (key, value) in fields {
        if value.is_null() {
            _ = object.as_object_mut().map(|object| object.remove(key));
        } else if by_type == Some(key) {
            let mut entries = object[key].as_array().cloned().unwrap_or_default();
            for entry in value.as_array().into_iter().flatten() {
                if entry["$patch"] == "delete" {
                    entries.retain(|known| known["type"] != entry["type"]);
                    continue;
                }
                match entries.iter_mut().find(|known| known["type"] == entry["type"]) {
                    Some(known) => walk(known, entry, by_type),
                    None => entries.push(entry.clone()),
                }
            }
            object[key] = Value::Array(entries);
        } else {
            walk(&mut object[key], value, by_type);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_merged_and_null_takes_them_away() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "d": [1, 2]});
        merge(&mut object, &json!({"a": {"b": null, "e": 3}, "d": [3]}));
        assert_eq!(object, json!({"a": {"c": 2, "e": 3}, "d": [3]}));
    }

    #[test]
    fn conditions_are_merged_by_type() {
        let mut object =
            json!({"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]});
        let patch =
            json!({"conditions": [{"type": "B", "status": "False"}, {"type": "C", "status": "True"}]});
        merge_strategically(&mut object, &patch);
        let expected = json!({"conditions": [
            {"type": "A", "status": "True"}, {"type": "B", "status": "False"}, {"type": "C", "status": "True"},
        ]});
        assert_eq!(object, expected);
        merge_strategically(&mut object, &json!({"conditions": [{"$patch": "delete", "type": "B"}]}));
        let names: Vec<_> =
            object["conditions"].as_array().unwrap().iter().map(|known| &known["type"]).collect();
        assert_eq!(names, ["A", "C"]);
    }
}
