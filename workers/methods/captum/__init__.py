"""Attribution classes of Captum, run on rows like any other method."""
