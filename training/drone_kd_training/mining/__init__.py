# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a flight to a data set: the frames that are worth learning from, labelled by a teacher."""
