//! The parts of EC2 that moto 5.2.5 lacks: pages, limits of filters, groups that are in use, the limit of groups on an
//! interface, canonical address ranges, the characters of a description, and rules that are added all or not at all and are
//! all named in the answer (EC2 API reference and User Guide).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use hyper::StatusCode;
use hyper::body::Bytes;
use ipnet::IpNet;

use super::protocol::{Broken, Call, error_body};

/// The actions that answer in pages, with the element that holds their items.
const PAGED: [(&str, &str); 5] = [
    ("DescribeInstances", "reservationSet"),
    ("DescribeNetworkInterfaces", "networkInterfaceSet"),
    ("DescribeSecurityGroupRules", RULES),
    ("DescribeSecurityGroups", "securityGroupInfo"),
    ("DescribeManagedPrefixLists", "prefixListSet"),
];
/// The element that holds rules.
const RULES: &str = "securityGroupRuleSet";
/// The number of values that a filter takes.
const FILTER_VALUES: usize = 200;
/// The largest number of items of a page.
const PAGE: usize = 1000;
/// The largest number of groups of an interface.
const GROUPS: usize = 5;
/// The characters that a rule's description may hold besides letters and digits.
const DESCRIPTION: &str = " ._-:/()#,@[]+=&;{}!$*";

type Answer = (StatusCode, Bytes);

/// The whole answers of which pages may still be asked for, by the call without its paging.
pub(super) type Answers = Mutex<HashMap<Vec<u8>, Bytes>>;

/// Reads, in pages where that is asked for, of `most` items at most.
pub(super) async fn read<F, R>(call: &Call, most: usize, answers: &Answers, ask: F) -> Result<Answer, Broken>
where
    F: Fn(Vec<u8>) -> R,
    R: Future<Output = Result<Answer, Broken>>,
{
    let values = |index: usize| {
        let prefix = format!("Filter.{index}.Value.");
        call.parameters.iter().filter(|(key, _)| key.starts_with(&prefix)).count()
    };
    if (1..=10).any(|index| values(index) > FILTER_VALUES) {
        return Ok(refusal("FilterLimitExceeded", "The maximum number of filter values is 200."));
    }
    let Some((_, set)) = PAGED.iter().find(|(action, _)| *action == call.action) else {
        return ask(encode(call, |_, _| true)).await;
    };
    let number = |name: &str| call.parameter(name).and_then(|text| text.parse::<usize>().ok());
    let size = number("MaxResults").unwrap_or(usize::MAX);
    if size > PAGE && size != usize::MAX {
        return Ok(refusal("InvalidParameterValue", "MaxResults is 1000 at most."));
    }
    let whole = encode(call, |key, _| key != "MaxResults" && key != "NextToken");
    let from = number("NextToken").unwrap_or(0);
    let kept = || answers.lock().unwrap_or_else(PoisonError::into_inner);
    let key = call.key(&whole);
    let known = kept().get(&key).filter(|_| from > 0).cloned();
    let body = match known {
        Some(body) => body,
        None => {
            let (status, body) = ask(whole).await?;
            if status != StatusCode::OK {
                return Ok((status, body));
            }
            kept().insert(key, body.clone());
            body
        }
    };
    let text = String::from_utf8_lossy(&body);
    Ok((StatusCode::OK, page(&text, set, from, size.min(most)).unwrap_or(body)))
}

/// Changes something, unless EC2 would not.
pub(super) async fn change<F, R>(call: &Call, body: Vec<u8>, ask: F) -> Result<Answer, Broken>
where
    F: Fn(Vec<u8>) -> R,
    R: Future<Output = Result<Answer, Broken>>,
{
    match call.action.as_str() {
        "DeleteSecurityGroup" => {
            let group = call.parameter("GroupId").unwrap_or_default();
            let find = |action: &str, filter: &str| {
                let pairs = [
                    ("Action", action),
                    ("Version", "2016-11-15"),
                    ("Filter.1.Name", filter),
                    ("Filter.1.Value.1", group),
                ];
                form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish().into_bytes()
            };
            let (_, interfaces) = ask(find("DescribeNetworkInterfaces", "group-id")).await?;
            let all = form_urlencoded::Serializer::new(String::new())
                .extend_pairs([("Action", "DescribeSecurityGroupRules"), ("Version", "2016-11-15")])
                .finish();
            let (_, rules) = ask(all.into_bytes()).await?;
            let in_use = !items(&String::from_utf8_lossy(&interfaces), "networkInterfaceSet").is_empty();
            let rules = String::from_utf8_lossy(&rules);
            let names = |rule: &&str| {
                let referenced = rule.split_once("<referencedGroupInfo>").map_or("", |(_, rest)| rest);
                let referenced =
                    referenced.split_once("</referencedGroupInfo>").map_or("", |(inner, _)| inner);
                let id = format!("<groupId>{group}</groupId>");
                let own =
                    rule.replace(&format!("<referencedGroupInfo>{referenced}</referencedGroupInfo>"), "");
                referenced.contains(&id) && !own.contains(&id)
            };
            if in_use || items(&rules, RULES).iter().any(names) {
                return Ok(refusal("DependencyViolation", "The group has a dependent object."));
            }
        }
        "ModifyNetworkInterfaceAttribute" => {
            let groups = call.parameters.iter().filter(|(key, _)| key.starts_with("SecurityGroupId")).count();
            if groups > GROUPS {
                let message =
                    "You have exceeded the maximum number of security groups allowed per network interface.";
                return Ok(refusal("SecurityGroupsPerInterfaceLimitExceeded", message));
            }
        }
        "AuthorizeSecurityGroupIngress" => {
            let mut call = call.clone();
            for (key, value) in &mut call.parameters {
                if (key.ends_with(".CidrIp") || key.ends_with(".CidrIpv6"))
                    && let Ok(net) = value.parse::<IpNet>()
                {
                    *value = net.trunc().to_string();
                }
                let is_bad = |c: char| !c.is_ascii_alphanumeric() && !DESCRIPTION.contains(c);
                if key.ends_with(".Description") && (value.len() > 255 || value.contains(is_bad)) {
                    return Ok(refusal("InvalidParameterValue", "Invalid rule description."));
                }
            }
            return authorize(&call, ask).await;
        }
        _ => {}
    }
    ask(body).await
}

/// Adds rules, all or none, and names all of them: moto names those of the last permission, and keeps what it added before
/// one that fails.
async fn authorize<F, R>(call: &Call, ask: F) -> Result<Answer, Broken>
where
    F: Fn(Vec<u8>) -> R,
    R: Future<Output = Result<Answer, Broken>>,
{
    let permission = |key: &str| key.strip_prefix("IpPermissions.")?.split('.').next().map(ToOwned::to_owned);
    let numbers: BTreeSet<String> = call.parameters.iter().filter_map(|(key, _)| permission(key)).collect();
    if numbers.len() < 2 {
        return ask(encode(call, |_, _| true)).await;
    }
    let (mut whole, mut added) = (String::new(), String::new());
    for number in &numbers {
        let of = |(key, value): &(String, String)| match permission(key) {
            None => Some((key.clone(), value.clone())),
            Some(one) if one == *number => {
                Some((key.replacen(&format!("IpPermissions.{one}."), "IpPermissions.1.", 1), value.clone()))
            }
            Some(_) => None,
        };
        let parameters = call.parameters.iter().filter_map(of).collect();
        let part = encode(&Call { parameters, ..call.clone() }, |_, _| true);
        let (status, answer) = ask(part).await?;
        if status != StatusCode::OK {
            undo(call, &added, &ask).await?;
            return Ok((status, answer));
        }
        whole = String::from_utf8_lossy(&answer).into_owned();
        added.extend(items(&whole, RULES));
    }
    let (open, close) = (format!("<{RULES}>"), format!("</{RULES}>"));
    let head = whole.split_once(&open).map_or("", |(head, _)| head);
    let tail = whole.rsplit_once(&close).map_or("", |(_, tail)| tail);
    Ok((StatusCode::OK, format!("{head}{open}{added}{close}{tail}").into()))
}

/// Takes the rules of an answer away again.
async fn undo<F, R>(call: &Call, added: &str, ask: &F) -> Result<(), Broken>
where
    F: Fn(Vec<u8>) -> R,
    R: Future<Output = Result<Answer, Broken>>,
{
    let id = |part: &str| part.split_once("</securityGroupRuleId>").map(|(id, _)| id.to_owned());
    let ids: Vec<String> = added.split("<securityGroupRuleId>").skip(1).filter_map(id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let version = call.parameter("Version").unwrap_or_default().to_owned();
    let group = call.parameter("GroupId").unwrap_or_default().to_owned();
    let numbered = (1..).zip(ids).map(|(number, id)| (format!("SecurityGroupRuleId.{number}"), id));
    let mut parameters = vec![("Version".to_owned(), version), ("GroupId".to_owned(), group)];
    parameters.extend(numbered);
    let revoke = Call { action: "RevokeSecurityGroupIngress".to_owned(), parameters, ..call.clone() };
    ask(encode(&revoke, |_, _| true)).await.map(drop)
}

/// An answer in which these interfaces are managed by a service. moto says of each that it is not.
pub(super) fn with_managed(answer: Bytes, managed: &BTreeSet<String>) -> Bytes {
    if managed.is_empty() {
        return answer;
    }
    let mut text = String::from_utf8_lossy(&answer).into_owned();
    for id in managed {
        let id = format!("<networkInterfaceId>{id}</networkInterfaceId>");
        let Some((before, after)) = text.split_once(&id) else { continue };
        let is = |managed: bool| format!("<requesterManaged>{managed}</requesterManaged>");
        let after = if after.contains(&is(false)) {
            after.replacen(&is(false), &is(true), 1)
        } else {
            format!("{}{after}", is(true))
        };
        text = format!("{before}{id}{after}");
    }
    text.into()
}

/// The tags of a resource.
pub(super) async fn tags<F, R>(id: &str, ask: F) -> Result<super::iam::Tags, Broken>
where
    F: Fn(Vec<u8>) -> R,
    R: Future<Output = Result<Answer, Broken>>,
{
    let pairs = [
        ("Action", "DescribeTags"),
        ("Version", "2016-11-15"),
        ("Filter.1.Name", "resource-id"),
        ("Filter.1.Value.1", id),
    ];
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let (_, answer) = ask(body.into_bytes()).await?;
    let text = String::from_utf8_lossy(&answer);
    let inner = |item: &str, name: &str| -> Option<String> {
        let (_, rest) = item.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0.to_owned())
    };
    let pair = |item: &str| Some((inner(item, "key")?, inner(item, "value").unwrap_or_default()));
    Ok(items(&text, "tagSet").into_iter().filter_map(pair).collect())
}

fn refusal(code: &str, message: &str) -> Answer {
    (StatusCode::BAD_REQUEST, error_body(code, message))
}

fn encode(call: &Call, keep: impl Fn(&str, &str) -> bool) -> Vec<u8> {
    let kept = call.parameters.iter().filter(|(key, value)| keep(key, value));
    let mut body = form_urlencoded::Serializer::new(String::new());
    body.append_pair("Action", &call.action).extend_pairs(kept);
    body.finish().into_bytes()
}

/// Cuts a page out of an answer.
fn page(text: &str, set: &str, from: usize, size: usize) -> Option<Bytes> {
    let all = items(text, set);
    if from == 0 && all.len() <= size {
        return None;
    }
    let (open, close) = (format!("<{set}>"), format!("</{set}>"));
    let (head, rest) = text.split_once(&open)?;
    let (_, tail) = rest.rsplit_once(&close)?;
    let shown: String = all.iter().skip(from).take(size).copied().collect();
    let next = from.saturating_add(size);
    let token = if next < all.len() { format!("<nextToken>{next}</nextToken>") } else { String::new() };
    Some(format!("{head}{open}{shown}{close}{token}{tail}").into())
}

/// The items of a set, each with its tags around it.
fn items<'a>(text: &'a str, set: &str) -> Vec<&'a str> {
    let inner =
        text.split_once(&format!("<{set}>")).and_then(|(_, rest)| rest.rsplit_once(&format!("</{set}>")));
    let Some((inner, _)) = inner else { return Vec::new() };
    let (mut found, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, _) in inner.match_indices('<') {
        let rest = &inner[at..];
        if rest.starts_with("<item>") {
            if depth == 0 {
                start = at;
            }
            depth += 1;
        } else if rest.starts_with("</item>") {
            depth -= 1;
            if depth == 0 {
                found.push(&inner[start..at + "</item>".len()]);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_whole_items_and_name_the_next() {
        let text = "<r><set><item>1<tags><item>a</item></tags></item><item>2</item><item>3</item></set></r>";
        assert_eq!(
            items(text, "set"),
            ["<item>1<tags><item>a</item></tags></item>", "<item>2</item>", "<item>3</item>"]
        );
        let page =
            |from, size| page(text, "set", from, size).map(|page| String::from_utf8(page.to_vec()).unwrap());
        assert_eq!(page(0, 3), None);
        assert_eq!(
            page(0, 2).unwrap(),
            "<r><set><item>1<tags><item>a</item></tags></item><item>2</item></set><nextToken>2</nextToken></r>"
        );
        assert_eq!(page(2, 2).unwrap(), "<r><set><item>3</item></set></r>");
    }
}
