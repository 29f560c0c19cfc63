"""What a question asks for, and where that belongs in each of the three benchmarks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """Where a question belongs in each of the three benchmarks, and its training domain."""

    domain: str
    l2_category: str
    category: str
    subject: str
    capabilities: tuple[str, ...]


_ATTRIBUTE = "attribute_reasoning"
_CROSS = "finegrained_perception (cross-instance)"
_INSTANCE = "finegrained_perception (instance-level)"
SKILLS = {
    "shape": Skill(
        domain="general_vqa",
        l2_category=_INSTANCE,
        category="attribute_recognition",
        subject="Art",
        capabilities=("rec",),
    ),
    "scene": Skill(
        domain="general_vqa",
        l2_category="coarse_perception",
        category="image_scene",
        subject="Art",
        capabilities=("rec", "gen"),
    ),
    "presence": Skill(
        domain="general_vqa",
        l2_category=_INSTANCE,
        category="object_localization",
        subject="Art",
        capabilities=("rec",),
    ),
    "world": Skill(
        domain="knowledge",
        l2_category=_ATTRIBUTE,
        category="physical_property_reasoning",
        subject="Geography",
        capabilities=("rec", "know"),
    ),
    "alphabet": Skill(
        domain="knowledge",
        l2_category=_ATTRIBUTE,
        category="identity_reasoning",
        subject="Literature",
        capabilities=("ocr", "know"),
    ),
    "count": Skill(
        domain="science_math",
        l2_category=_CROSS,
        category="attribute_comparison",
        subject="Math",
        capabilities=("rec", "math"),
    ),
    "number": Skill(
        domain="science_math",
        l2_category="logic_reasoning",
        category="structuralized_imagetext_understanding",
        subject="Math",
        capabilities=("ocr", "math"),
    ),
    "chart": Skill(
        domain="chart_document",
        l2_category="logic_reasoning",
        category="structuralized_imagetext_understanding",
        subject="Economics",
        capabilities=("rec", "math"),
    ),
    "text": Skill(
        domain="chart_document",
        l2_category=_INSTANCE,
        category="ocr",
        subject="Literature",
        capabilities=("ocr",),
    ),
}
