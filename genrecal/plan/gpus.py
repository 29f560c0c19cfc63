"""GPUs by name: the figures of their vendor's public data sheets.

Speeds are dense bf16 with fp32 sums; the sheets' larger figures count structured sparsity. `node_gb_s` is
what one GPU sends to others of its node in one direction, half of the sheet's NVLink figure, which adds both;
`network_gb_s` is one network port of the vendor's own server for each GPU (200 or 400 Gbit/s).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What a plan needs to know about a GPU."""

    memory_gib: float
    tflops: float
    node_gb_s: float
    network_gb_s: float
    sheet: str
    """Where the figures stand."""


GPUS: dict[str, Gpu] = {
    "a100-40gb": Gpu(
        memory_gib=40,
        tflops=312,
        node_gb_s=300,
        network_gb_s=25,
        sheet="NVIDIA A100 Tensor Core GPU data sheet (SXM); DGX A100 data sheet",
    ),
    "a100-80gb": Gpu(
        memory_gib=80,
        tflops=312,
        node_gb_s=300,
        network_gb_s=25,
        sheet="NVIDIA A100 Tensor Core GPU data sheet (SXM); DGX A100 data sheet",
    ),
    "h100": Gpu(
        memory_gib=80,
        tflops=989,
        node_gb_s=450,
        network_gb_s=50,
        sheet="NVIDIA H100 Tensor Core GPU data sheet (SXM); DGX H100 data sheet",
    ),
    "h200": Gpu(
        memory_gib=141,
        tflops=989,
        node_gb_s=450,
        network_gb_s=50,
        sheet="NVIDIA H200 Tensor Core GPU data sheet (SXM); DGX H200 data sheet",
    ),
}
