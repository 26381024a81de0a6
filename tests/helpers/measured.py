"""A row of the bench, for tests to change."""

from bench.results import Row

ROW = Row(
    op="gather_tokens",
    provider="ours",
    pass_="fwd",
    shape="B=4 N=16",
    dtype="float32",
    device="cpu",
    torch="2.13.0",
    commit="abc",
    date="2026-01-01T00:00:00+00:00",
    device_name="a processor",
    threads=2,
    backend="native",
    rounds=5,
    median_us=12.3456789,
    p20_us=11.0,
    p80_us=14.0,
    cold_median_us=None,
    ratio=1.0,
    gb_per_s=10.0,
    tflop_per_s=None,
    share=0.5,
    ceiling="copy",
    ceiling_value=20.0,
    extra_bytes=64,
    items_per_s=None,
    gflop_per_item=None,
    live_bytes=None,
    process_median_us=None,
)
