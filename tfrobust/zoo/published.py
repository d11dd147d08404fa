"""What RobustBench publishes about networks whose weights `tfrobust.zoo` loads."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """An entry of RobustBench (Croce et al., 2021, arXiv:2010.09670; robustbench.github.io).

    Attributes:
        data: The data set.
        norm, eps: The threat.
        clean, autoattack: Accuracy in percent on the 10,000 test images, and under AutoAttack.
        name: Its name there; the file of its weights is NAME.pt.
        architecture: Its name in ARCHITECTURES.
        paper: Where it was published.
    """

    data: str
    norm: str
    eps: str
    clean: float
    autoattack: float
    name: str
    architecture: str
    paper: str

    @property
    def command(self) -> str:
        """The command that evaluates its weights, beside these figures in the report."""
        figures = f"clean: {self.clean / 100:.4f}, AutoAttack: {self.autoattack / 100:.4f}"
        parts = [
            f"tfrobust evaluate --model {self.name}.pt --architecture {self.architecture}",
            f"data.name={self.data}" if self.data != "cifar10" else "",
            f"threat.norm={self.norm}" if self.norm != "linf" else "",
            f"threat.eps={self.eps}" if self.eps != "8/255" else "",
            f"'paper={{source: \"{self.paper}\", {figures}}}'",
        ]
        return " --set ".join(part for part in parts if part)


# By data set and norm: the other fields of each entry, from RobustBench's model_info (78fcc9e).
ENTRIES = {
    ("cifar10", "linf"): """
8/255 93.25 70.69 Wang2023Better_WRN-70-16 wang2023_wrn_70_16 2302.04638
8/255 92.44 67.31 Wang2023Better_WRN-28-10 wang2023_wrn_28_10 2302.04638
8/255 93.68 73.71 Bartoldson2024Adversarial_WRN-94-16 bartoldson2024_wrn_94_16 2404.09349
8/255 93.11 71.59 Bartoldson2024Adversarial_WRN-82-8 bartoldson2024_wrn_82_8 2404.09349
8/255 92.16 67.73 Cui2023Decoupled_WRN-28-10 wang2023_wrn_28_10 2305.13948
8/255 93.69 63.89 Xu2023Exploring_WRN-28-10 wang2023_wrn_28_10 2302.03015
8/255 89.48 62.80 Gowal2020Uncovering_28_10_extra dm_wrn_28_10 2010.03593
8/255 85.64 56.86 Gowal2020Uncovering_34_20 dm_wrn_34_20 2010.03593
8/255 85.29 57.20 Gowal2020Uncovering_70_16 dm_wrn_70_16 2010.03593
8/255 91.10 65.88 Gowal2020Uncovering_70_16_extra dm_wrn_70_16 2010.03593
8/255 87.33 60.75 Rebuffi2021Fixing_28_10_cutmix_ddpm dm_wrn_28_10 2103.01946
8/255 92.23 66.58 Rebuffi2021Fixing_70_16_cutmix_extra dm_wrn_70_16 2103.01946
8/255 88.50 64.64 Rebuffi2021Fixing_106_16_cutmix_ddpm dm_wrn_106_16 2103.01946
8/255 83.53 56.66 Rebuffi2021Fixing_R18_ddpm dm_preact_resnet_18 2103.01946
8/255 87.50 63.44 Gowal2021Improving_28_10_ddpm_100m dm_wrn_28_10 2110.09468
8/255 87.35 58.63 Gowal2021Improving_R18_ddpm_100m dm_preact_resnet_18 2110.09468
8/255 91.47 62.83 Rade2021Helper_extra dm_wrn_34_10 openreview:BuD2LmNaU3a
8/255 86.86 57.09 Rade2021Helper_R18_ddpm dm_preact_resnet_18 openreview:BuD2LmNaU3a
8/255 88.61 61.04 Pang2022Robustness_WRN28_10 dm_wrn_28_10 2202.10103
0.031 84.92 53.08 Zhang2019Theoretically wrn_34_10 1901.08573
8/255 89.69 59.53 Carmon2019Unlabeled wrn_28_10 1905.13736
8/255 87.50 56.29 Wang2020Improving wrn_28_10 openreview:rklOg6EFwS
8/255 85.36 56.17 Wu2020Adversarial wrn_34_10 2004.05884
8/255 88.25 60.04 Wu2020Adversarial_extra wrn_28_10 2004.05884
8/255 87.11 54.92 Hendrycks2019Using hendrycks2019_wrn_28_10 1901.09960
8/255 85.34 53.42 Rice2020Overfitting rice2020_wrn_34_20 2002.11569
8/255 86.68 60.27 Sehwag2021Proxy wrn_34_10 2104.09425
8/255 84.59 55.54 Sehwag2021Proxy_R18 resnet_18 2104.09425
8/255 86.53 60.41 Sridhar2021Robust_34_15 wrn_34_15 2106.02078
8/255 86.03 57.71 Chen2021LTD_WRN34_20 wrn_34_20 2111.02331
8/255 85.66 57.61 Jia2022LAS-AT_70_16 wrn_70_16 2203.06616
8/255 85.71 52.48 Addepalli2022Efficient_RN18 resnet_18 2210.15318
8/255 88.71 57.81 Addepalli2022Efficient_WRN_34_10 wrn_34_10 2210.15318
8/255 79.84 43.93 Andriushchenko2020Understanding andriushchenko2020_preact_resnet_18 2007.02617
8/255 83.34 43.21 Wong2020Fast wong2020_preact_resnet_18 2001.03994
""",
    ("cifar10", "l2"): """
0.5   95.16 83.68 Wang2023Better_WRN-28-10 wang2023_wrn_28_10 2302.04638
0.5   95.54 84.97 Wang2023Better_WRN-70-16 wang2023_wrn_70_16 2302.04638
0.5   90.33 75.86 Rebuffi2021Fixing_R18_cutmix_ddpm dm_preact_resnet_18 2103.01946
0.5   88.67 67.68 Rice2020Overfitting rice2020_preact_resnet_18 2002.11569
0.5   88.51 73.66 Wu2020Adversarial wrn_34_10 2004.05884
0.5   89.76 74.41 Sehwag2021Proxy_R18 resnet_18 2104.09425
""",
    ("cifar100", "linf"): """
8/255 72.58 38.83 Wang2023Better_WRN-28-10 wang2023_wrn_28_10 2302.04638
8/255 75.22 42.67 Wang2023Better_WRN-70-16 wang2023_wrn_70_16 2302.04638
8/255 56.87 28.50 Rebuffi2021Fixing_R18_ddpm dm_preact_resnet_18 2103.01946
8/255 62.02 27.14 Addepalli2021Towards_PARN18 preact_resnet_18 2210.09852
8/255 65.45 27.67 Addepalli2022Efficient_RN18 resnet_18 2210.15318
""",
}


def _published(data: str, norm: str, line: str) -> Published:
    eps, clean, autoattack, name, architecture, paper = line.split()
    paper = paper if ":" in paper else f"arXiv:{paper}"
    return Published(data, norm, eps, float(clean), float(autoattack), name, architecture, paper)


PUBLISHED = tuple(
    _published(data, norm, line)
    for (data, norm), lines in ENTRIES.items()
    for line in lines.strip().splitlines()
)
