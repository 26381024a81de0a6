#!/usr/bin/env bash
# stable-pretraining's teacher sets integer buffers to zero: a Swin teacher loses its relative positions at once.
set -euo pipefail
exec "$(dirname "$0")/with_packages" \
  stable-pretraining==0.1.8 timm==1.0.31 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
import timm
import torch
from stable_pretraining import __version__
from stable_pretraining.backbone.utils import TeacherStudentWrapper

torch.manual_seed(0)
student = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, num_classes=0).eval()
with torch.no_grad():
    for name, parameter in student.named_parameters():
        if name.endswith("relative_position_bias_table"):
            parameter.normal_()
wrapper = TeacherStudentWrapper(student)
image = torch.randn(1, 3, 56, 56)


@torch.no_grad()
def compare():
    """Return how far the features of teacher and student are apart, and the indices of relative positions in use."""
    wrapper.eval()
    features = wrapper.forward_teacher(image), wrapper.forward_student(image)
    used = wrapper.teacher.layers[0].blocks[0].attn.relative_position_index.unique().numel()
    return (features[0] - features[1]).norm().item() / features[1].norm().item(), used


new, used = compare()
wrapper.train()
wrapper.update_teacher()  # the student has learned nothing: an average of equal networks
updated, used_after = compare()
print(f"stable-pretraining {__version__}, timm {timm.__version__}, torch {torch.__version__}")
print("expected: a teacher stays equal to a student that does not change ('including buffers', its source says)")
print(f"observed: features differ by {new:.0%} before an update and by {updated:.0%} after it;")
print(f"          the teacher's first block knew {used} relative positions, and knows {used_after} now")
assert new == 0 and used == 169
assert updated > 0.1 and used_after == 1, "this has changed"
PYTHON
