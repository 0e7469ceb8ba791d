"""The public names as type checkers see them; at run time `__init__.py` loads each on first use."""

from msn_deploy.bench.compare import compare as compare
from msn_deploy.bench.measure import measure as measure
from msn_deploy.core.progress import progress_bar as progress_bar
from msn_deploy.core.recipes import load_recipe as load_recipe
from msn_deploy.engine import load_runner as load_runner
from msn_deploy.msn import MSNConv1d as MSNConv1d
from msn_deploy.msn import MSNConv2d as MSNConv2d
from msn_deploy.msn import MSNConv3d as MSNConv3d
from msn_deploy.msn import MSNConvTranspose1d as MSNConvTranspose1d
from msn_deploy.msn import MSNConvTranspose2d as MSNConvTranspose2d
from msn_deploy.msn import MSNConvTranspose3d as MSNConvTranspose3d
from msn_deploy.msn import MSNLinear as MSNLinear
from msn_deploy.msn import convert as convert
from msn_deploy.msn import fold as fold
from msn_deploy.pipeline.bench import benchmark as benchmark
from msn_deploy.pipeline.build import build_engine as build_engine
from msn_deploy.pipeline.calibrate import calibrate as calibrate
from msn_deploy.pipeline.diff import diff as diff
from msn_deploy.pipeline.evaluate import evaluate as evaluate
from msn_deploy.pipeline.export import export as export
from msn_deploy.pipeline.export import export_onnx as export_onnx
from msn_deploy.pipeline.load import load as load
from msn_deploy.pipeline.train import train as train
from msn_deploy.pipeline.verify import verify_folder as verify_folder
from msn_deploy.quant.precision import to_fp16 as to_fp16
from msn_deploy.quant.quantize import quantize as quantize
from msn_deploy.training.qat import quantize_aware as quantize_aware

__version__: str
