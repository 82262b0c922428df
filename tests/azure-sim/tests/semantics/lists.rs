//! Lists, in pages.

use serde_json::Value;

use crate::client::{Cloud, Reply, SUBSCRIPTION};

/// The items of every page, and how many each page has.
async fn all(cloud: &Cloud, first: Reply) -> (Vec<String>, Vec<usize>) {
    let (mut names, mut pages) = (Vec::new(), Vec::new());
    let mut page = first.good();
    loop {
        let items = page["value"].as_array().unwrap();
        pages.push(items.len());
        names.extend(items.iter().map(|item: &Value| item["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["nextLink"].as_str() else { return (names, pages) };
        assert!(next.starts_with(&cloud.origin()), "{next}");
        page = cloud.follow(next).await.good();
    }
}

fn groups_in(scope: &str) -> String {
    format!("/subscriptions/{SUBSCRIPTION}{scope}/providers/Microsoft.Network/networkSecurityGroups")
}

#[tokio::test]
async fn every_item_of_a_list_comes_on_one_page_alone() {
    for (page_size, pages) in
        [(1, vec![1; 6]), (4, vec![4, 2]), (3, vec![3, 3]), (6, vec![6]), (100, vec![6])]
    {
        let cloud = Cloud::new().await;
        for name in ["a", "b", "c", "d", "e"] {
            cloud.lab.nsg(name);
        }
        cloud.sim.page_size(page_size);
        let first = cloud.get(&groups_in("/resourceGroups/Web")).await;
        let (names, sizes) = all(&cloud, first).await;
        assert_eq!(names, ["a", "b", "c", "d", "e", "nsg"]);
        assert_eq!(sizes, pages, "pages of {page_size}");
    }
}

#[tokio::test]
async fn a_page_has_100_items_unless_set_otherwise() {
    let cloud = Cloud::new().await;
    for at in 0..100 {
        cloud.lab.nsg(&format!("nsg-{at:03}"));
    }
    let first = cloud.get(&groups_in("")).await;
    let (names, pages) = all(&cloud, first).await;
    assert_eq!(pages, [100, 1]);
    assert_eq!(names.len(), 101);
}

#[tokio::test]
async fn a_list_holds_one_kind_of_one_scope_and_nothing_else() {
    let cloud = Cloud::new().await;
    let elsewhere = |subscription: &str, group: &str| {
        let id = format!("/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network");
        cloud.sim.put(&format!("{id}/networkSecurityGroups/{group}-nsg"), crate::client::group(vec![]));
    };
    elsewhere(SUBSCRIPTION, "Web2");
    elsewhere("other", "Web");
    for (scope, expected) in [
        ("/resourceGroups/Web", vec!["nsg"]),
        ("/RESOURCEGROUPS/wEB", vec!["nsg"]),
        ("/resourceGroups/Web2", vec!["Web2-nsg"]),
        ("", vec!["nsg", "Web2-nsg"]),
    ] {
        let first = cloud.get(&groups_in(scope)).await;
        assert_eq!(all(&cloud, first).await.0, expected, "{scope}");
    }
    let none = format!("/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Network/azureFirewalls");
    assert_eq!(cloud.get(&none).await.good(), serde_json::json!({"value": []}));
}
