use andon_engine::*;
use std::sync::Arc;
use std::time::Instant;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let isa = std::env::args()
        .nth(2)
        .and_then(|n| andon_kernels::Isa::from_name(&n));
    let t = Instant::now();
    let model = Arc::new(Model::load(path.as_ref()).unwrap());
    println!("load {:?} {:?}", t.elapsed(), model.info());
    let mut ex = Executor::new(
        model,
        &ExecutorOptions {
            threads: Some(2),
            isa,
            ..Default::default()
        },
    )
    .unwrap();
    println!("ready {:?} {:?}", t.elapsed(), ex.isa());
    let ids: Vec<u32> = std::env::args()
        .nth(3)
        .unwrap()
        .split(',')
        .map(|x| x.parse().unwrap())
        .collect();
    let mut s = ex.sequence();
    let mut out = vec![];
    let arg = |l: &[f32]| {
        l.iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .unwrap()
            .0 as u32
    };
    let mut next = {
        let l = ex
            .forward(&mut [Chunk {
                sequence: &mut s,
                tokens: &ids,
                logits: LogitsFor::Last,
            }])
            .unwrap();
        println!("{:?}", &l.row(0)[..4]);
        arg(l.row(0))
    };
    let t = Instant::now();
    for _ in 0..128 {
        out.push(next);
        next = arg(ex
            .forward(&mut [Chunk {
                sequence: &mut s,
                tokens: &[next],
                logits: LogitsFor::Last,
            }])
            .unwrap()
            .row(0));
    }
    println!("decode {:.1} tok/s", 128.0 / t.elapsed().as_secs_f64());
    println!("{out:?}");
    for _ in 0..3 {
        let mut s = ex.sequence();
        let p: Vec<u32> = (0..512).map(|i| (i * 7919 % 49000) as u32).collect();
        let t = Instant::now();
        ex.forward(&mut [Chunk {
            sequence: &mut s,
            tokens: &p,
            logits: LogitsFor::Last,
        }])
        .unwrap();
        println!("prefill {:.1} tok/s", 512.0 / t.elapsed().as_secs_f64());
    }
}
