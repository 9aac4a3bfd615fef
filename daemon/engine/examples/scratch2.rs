use andon_engine::*;
use std::sync::Arc;
use std::time::Instant;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let threads = std::env::args().nth(2).unwrap().parse().unwrap();
    let mode = std::env::args().nth(3).unwrap();
    let isa = std::env::args()
        .nth(4)
        .and_then(|n| andon_kernels::Isa::from_name(&n));
    let model = Arc::new(Model::load(path.as_ref()).unwrap());
    let mut ex = Executor::new(
        model,
        &ExecutorOptions {
            threads: Some(threads),
            isa,
            ..Default::default()
        },
    )
    .unwrap();
    if mode == "d" {
        let mut best = 0f64;
        for _ in 0..6 {
            let mut s = ex.sequence();
            let t = Instant::now();
            for i in 0..64 {
                ex.forward(&mut [Chunk {
                    sequence: &mut s,
                    tokens: &[i * 7 + 100],
                    logits: LogitsFor::Last,
                }])
                .unwrap();
            }
            best = best.max(64.0 / t.elapsed().as_secs_f64());
        }
        println!("decode best {best:.1} tok/s");
    } else {
        let mut best = 0f64;
        for _ in 0..4 {
            let mut s = ex.sequence();
            let p: Vec<u32> = (0..512).map(|i| (i * 7919 % 49000) as u32).collect();
            let t = Instant::now();
            ex.forward(&mut [Chunk {
                sequence: &mut s,
                tokens: &p,
                logits: LogitsFor::Last,
            }])
            .unwrap();
            best = best.max(512.0 / t.elapsed().as_secs_f64());
        }
        println!("prefill best {best:.1} tok/s");
    }
}
