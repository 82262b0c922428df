use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn window(port: &str, source: &str, seconds: u64) -> HeldWindow {
    HeldWindow {
        grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
        port: port.parse().unwrap(),
        source: source.parse().unwrap(),
        deadline: BootTime(seconds * SECOND),
    }
}

fn elements(windows: &[HeldWindow]) -> Vec<(WindowSet, String, u64)> {
    let of = of_windows(windows, BootTime(0));
    of.into_iter().map(|(element, end)| (element.set, element.to_string(), end.0 / SECOND)).collect()
}

#[test]
fn single_addresses_are_hashed_and_wider_prefixes_are_flattened_for_each_port() {
    let windows = [
        window("tcp/22", "192.0.2.7", 10),
        window("tcp/22", "192.0.2.7", 20),
        window("tcp/22", "192.0.2.0/28", 30),
        window("tcp/22", "192.0.2.8/30", 40),
        window("udp/22", "192.0.2.0/24", 5),
        window("tcp/22", "2001:db8::1", 7),
        window("tcp/22", "2001:db8::/64", 8),
    ];
    let expected = [
        (WindowSet::Hosts4, "tcp/22 from 192.0.2.7", 20),
        (WindowSet::Hosts6, "tcp/22 from 2001:db8::1", 7),
        (WindowSet::Nets4, "tcp/22 from 192.0.2.0-192.0.2.7", 30),
        (WindowSet::Nets4, "tcp/22 from 192.0.2.8-192.0.2.11", 40),
        (WindowSet::Nets4, "tcp/22 from 192.0.2.12-192.0.2.15", 30),
        (WindowSet::Nets4, "udp/22 from 192.0.2.0-192.0.2.255", 5),
        (WindowSet::Nets6, "tcp/22 from 2001:db8::-2001:db8::ffff:ffff:ffff:ffff", 8),
    ];
    assert_eq!(elements(&windows), expected.map(|(set, text, end)| (set, text.to_owned(), end)));
}

#[test]
fn i2_a_window_that_has_ended_is_no_element() {
    let windows = [window("tcp/22", "192.0.2.7", 10), window("tcp/22", "192.0.2.0/24", 11)];
    assert_eq!(of_windows(&windows, BootTime(10 * SECOND)).len(), 1);
    assert!(of_windows(&windows, BootTime(11 * SECOND)).is_empty());
}

#[test]
fn a_changed_end_is_removed_and_added_again() {
    let held =
        of_windows(&[window("tcp/22", "192.0.2.7", 10), window("tcp/22", "192.0.2.8", 10)], BootTime(0));
    let wanted =
        of_windows(&[window("tcp/22", "192.0.2.7", 20), window("tcp/22", "192.0.2.8", 10)], BootTime(0));
    let delta = Delta::between(&held, &wanted);
    assert_eq!((delta.remove.len(), delta.add.len(), delta.touched().len()), (1, 1, 1));
    assert!(Delta::between(&wanted, &wanted).is_empty());
}

#[test]
fn only_moved_ends_are_split_into_parts() {
    let many = |end| (0..10).map(|n| window("tcp/22", &format!("192.0.2.{n}"), end)).collect::<Vec<_>>();
    let of = |windows: &[HeldWindow]| of_windows(windows, BootTime(0));
    let moved = Delta::between(&of(&many(10)), &of(&many(20)));
    let parts = moved.parts(8);
    assert_eq!(parts.iter().map(Delta::len).collect::<Vec<_>>(), [8, 8, 4]);
    assert!(parts.iter().all(Delta::only_moves_ends));
    let opened = Delta::between(&Elements::new(), &of(&many(20)));
    assert_eq!(opened.parts(8), [opened]);
}

#[test]
fn a_difference_is_named_and_jiffies_do_not_count() {
    let wanted = of_windows(&[window("tcp/22", "192.0.2.7", 10)], BootTime(0));
    let late = |by: u64| {
        wanted.iter().map(|(element, end)| (*element, end.plus(Duration::from_millis(by)))).collect()
    };
    assert_eq!(difference(&late(20), &wanted, BootTime(0)), None);
    assert!(difference(&late(500), &wanted, BootTime(0)).unwrap().contains("another end"));
    assert!(difference(&Elements::new(), &wanted, BootTime(0)).unwrap().contains("missing"));
    assert!(difference(&wanted, &Elements::new(), BootTime(0)).unwrap().contains("not Postern's"));
    assert_eq!(difference(&Elements::new(), &wanted, BootTime(10 * SECOND)), None, "it ends just now");
}

fn crowded() -> impl Strategy<Value = Vec<HeldWindow>> {
    let source = (0u8..16, prop::sample::select(vec![28u8, 30, 31, 32])).prop_map(|(low, len)| {
        let net = ipnet::Ipv4Net::new([192, 0, 2, low].into(), len).unwrap().trunc();
        net.to_string()
    });
    let window = (prop::sample::select(vec!["tcp/22", "udp/22"]), source, 1u64..6);
    prop::collection::vec(
        window.prop_map(|(port, source, end)| super::tests::window(port, &source, end)),
        0..12,
    )
}

proptest! {
    #[test]
    fn elements_admit_exactly_what_the_windows_admit_at_every_instant(windows in crowded(), now in 0u64..6) {
        let elements = of_windows(&windows, BootTime(now * SECOND));
        for later in now..7 {
            for low in 0u8..=20 {
                let address = IpAddr::from([192, 0, 2, low]);
                for port in ["tcp/22", "udp/22"].map(|port| port.parse::<ProtectedPort>().unwrap()) {
                    let later = BootTime(later * SECOND);
                    let by_windows = windows.iter().any(|w| w.port == port && later < w.deadline && w.source.contains(address));
                    let by_elements = elements.iter().any(|(e, end)| e.port == port && later < *end && (e.first..=e.last).contains(&address));
                    prop_assert_eq!(by_windows, by_elements);
                }
            }
        }
        let nets: Vec<_> = elements.keys().filter(|e| e.set.is_interval()).collect();
        for (i, one) in nets.iter().enumerate() {
            for other in &nets[i + 1..] {
                prop_assert!(one.port != other.port || one.last < other.first || other.last < one.first);
            }
        }
    }

    #[test]
    fn i8_a_delta_leads_from_any_state_to_the_wanted_one(before in crowded(), after in crowded()) {
        let (held, wanted) = (of_windows(&before, BootTime(0)), of_windows(&after, BootTime(0)));
        let delta = Delta::between(&held, &wanted);
        let mut now = held;
        now.retain(|element, _| !delta.remove.contains(element));
        for (element, end) in delta.add {
            prop_assert!(now.insert(element, end).is_none(), "added over one that was not removed");
        }
        prop_assert_eq!(now, wanted);
    }
}
