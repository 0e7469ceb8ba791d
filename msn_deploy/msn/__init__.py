"""Mean Spectral Normalization (arXiv 1907.04003) and Spectral Normalization: layers, fold, conversion from BN."""

from msn_deploy.msn.algebra import fold_bn_weights, fold_msn_weights
from msn_deploy.msn.convert import Conversion, convert
from msn_deploy.msn.fold import fold
from msn_deploy.msn.layers import (
    MSNConv1d,
    MSNConv2d,
    MSNConv3d,
    MSNConvTranspose1d,
    MSNConvTranspose2d,
    MSNConvTranspose3d,
    MSNLinear,
    SNConv1d,
    SNConv2d,
    SNConv3d,
    SNConvTranspose1d,
    SNConvTranspose2d,
    SNConvTranspose3d,
    SNLinear,
    WSConv2d,
    sigma_errors,
)
from msn_deploy.msn.lipschitz import Lipschitz, lipschitz
from msn_deploy.msn.plain import FoldedLayer, fold_layers

__all__ = [
    "Conversion",
    "FoldedLayer",
    "Lipschitz",
    "MSNConv1d",
    "MSNConv2d",
    "MSNConv3d",
    "MSNConvTranspose1d",
    "MSNConvTranspose2d",
    "MSNConvTranspose3d",
    "MSNLinear",
    "SNConv1d",
    "SNConv2d",
    "SNConv3d",
    "SNConvTranspose1d",
    "SNConvTranspose2d",
    "SNConvTranspose3d",
    "SNLinear",
    "WSConv2d",
    "convert",
    "fold",
    "fold_bn_weights",
    "fold_layers",
    "fold_msn_weights",
    "lipschitz",
    "sigma_errors",
]
