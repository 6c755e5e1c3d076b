use datafusion::execution::session_state::SessionStateBuilder;
#[test]
fn names() {
    let s = SessionStateBuilder::new_with_default_features().build();
    let mut v: Vec<_> = s.scalar_functions().iter().map(|(n, f)| if n == f.name() { n.clone() } else { format!("{n}={}", f.name()) }).collect();
    v.sort();
    println!("SCALAR {}", v.join(" "));
    let mut v: Vec<_> = s.aggregate_functions().iter().map(|(n, f)| if n == f.name() { n.clone() } else { format!("{n}={}", f.name()) }).collect();
    v.sort();
    println!("AGG {}", v.join(" "));
    let mut v: Vec<_> = s.window_functions().iter().map(|(n, f)| if n == f.name() { n.clone() } else { format!("{n}={}", f.name()) }).collect();
    v.sort();
    println!("WIN {}", v.join(" "));
    let mut v: Vec<_> = s.higher_order_functions().keys().cloned().collect();
    v.sort();
    println!("HOF {}", v.join(" "));
    let mut v: Vec<_> = s.table_functions().keys().cloned().collect();
    v.sort();
    println!("TAB {}", v.join(" "));
    for r in s.analyzer().rules.iter() { println!("ANALYZER {}", r.name()); }
    for r in s.optimizer().rules.iter() { println!("OPT {}", r.name()); }
    for r in s.physical_optimizers().iter() { println!("PHYS {}", r.name()); }
}
