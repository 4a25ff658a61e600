"""PEARL: preferences of one robot task carried to another, and rewards that expect them to be wrong now and then.

Comparisons of trajectories are what preference-based reinforcement learning asks of people, task by task. Cross-task
preference alignment (CPA) matches the trajectories of a labelled task with those of a new one by Gromov-Wasserstein
transport, which needs no common observations, and carries the labels over. Because such labels are noisy, rewards are
Gaussians whose spread is learned and kept from collapsing (robust reward learning, RRL). The offline data of the new
task are relabelled, and any offline method trains the policy; a small implicit Q-learning (IQL) is here.

Reference: Liu, Du, Bai, Lyu & Li (2024), PEARL: zero-shot cross-task preference alignment and robust reward learning
for robotic manipulation, ICML, arXiv 2306.03615; Kim et al. (2023), Preference transformer: modeling human preferences
using transformers for RL (the backbone); Kostrikov, Nair & Levine (2022), Offline reinforcement learning with implicit
Q-learning. The body of the first paper was not at hand: its formulas are those that its abstract and its reviews give.
"""

from .alignment import CrossTaskPreferenceAlignment as CrossTaskPreferenceAlignment
from .alignment import draw_queries as draw_queries
from .alignment import preference_accuracy as preference_accuracy
from .alignment import preferences as preferences
from .alignment import trajectory_distance as trajectory_distance
from .alignment import transfer_pairwise as transfer_pairwise
from .pipeline import PearlPipeline as PearlPipeline
from .policy import GaussianPolicy as GaussianPolicy
from .policy import Transitions as Transitions
from .policy import iql as iql
from .policy import normalised_rewards as normalised_rewards
from .policy import transitions as transitions
from .rewards import GaussianRewardModel as GaussianRewardModel
from .rewards import robust_preference_loss as robust_preference_loss
from .rewards import train_reward as train_reward

__all__ = [
    "CrossTaskPreferenceAlignment",
    "GaussianPolicy",
    "GaussianRewardModel",
    "PearlPipeline",
    "Transitions",
    "draw_queries",
    "iql",
    "normalised_rewards",
    "preference_accuracy",
    "preferences",
    "robust_preference_loss",
    "train_reward",
    "trajectory_distance",
    "transfer_pairwise",
    "transitions",
]
